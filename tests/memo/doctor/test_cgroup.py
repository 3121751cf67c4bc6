"""Limits of control groups, read from trees made for the test: both versions, and both at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from memo.doctor.cgroup import GroupLimit, memory_limits
from memo.doctor.host import host_memory

GIB = 2**30
V1_UNLIMITED = 2**63 - 4096


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n", encoding="utf-8")


class Tree:
    """A root and a membership file, and the least limit that is read from them."""

    def __init__(self, folder: Path) -> None:
        self.root, self.membership = folder / "cgroup", folder / "self"

    def limit(self, membership: str, files: dict[str, object]) -> GroupLimit | None:
        self.membership.write_text(membership, encoding="utf-8")
        write(self.root, files)
        return next(iter(memory_limits(self.root, self.membership)), None)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_version_2(tree: Tree) -> None:
    limit = tree.limit(
        "0::/user/job\n",
        {
            "user/job/memory.max": 4 * GIB,
            "user/job/memory.current": 3 * GIB,
            "user/job/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7",
        },
    )
    assert limit == GroupLimit(tree.root / "user/job", 4 * GIB, 2 * GIB)


def test_version_1(tree: Tree) -> None:
    limit = tree.limit(
        "9:cpu,cpuacct:/other\n4:memory:/docker/abc\n0::/\n",
        {
            "memory/docker/abc/memory.limit_in_bytes": 8 * GIB,
            "memory/docker/abc/memory.usage_in_bytes": 5 * GIB,
            "memory/docker/abc/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * GIB}",
            "cpu/other/memory.limit_in_bytes": 1,
        },
    )
    assert limit == GroupLimit(tree.root / "memory/docker/abc", 8 * GIB, 3 * GIB)


def test_the_least_of_the_ancestors_counts(tree: Tree) -> None:
    files: dict[str, object] = {"a/b/c/memory.max": 9 * GIB, "a/b/memory.max": "max"}
    limit = tree.limit("0::/a/b/c\n", files | {"a/memory.max": 2 * GIB, "memory.max": 3 * GIB})
    assert limit is not None
    assert (limit.path, limit.limit_bytes, limit.used_bytes) == (tree.root / "a", 2 * GIB, 0)


def test_a_container_shows_its_own_group_as_the_root(tree: Tree) -> None:
    limit = tree.limit("0::/system.slice/docker-abc\n", {"memory.max": GIB})
    assert limit == GroupLimit(tree.root, GIB, 0)
    other = Tree(tree.root.parent / "v1")
    other.root.parent.mkdir()
    found = other.limit("4:memory:/docker/abc\n", {"memory/memory.limit_in_bytes": 2 * GIB})
    assert found == GroupLimit(other.root / "memory", 2 * GIB, 0)


def test_in_a_hybrid_both_are_read(tree: Tree) -> None:
    limit = tree.limit(
        "4:memory:/job\n0::/job\n",
        {"memory/job/memory.limit_in_bytes": 4 * GIB, "unified/job/memory.max": 3 * GIB},
    )
    assert limit is not None
    assert limit.path == tree.root / "unified/job"


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/job\n", {"job/memory.max": "max"}),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": V1_UNLIMITED}),
        ("1:name=systemd:/job\n", {"job/memory.max": 5, "systemd/job/memory.max": 5}),
        ("", {"memory.max": 5}),
        ("0::/job\n", {"job/memory.max": ""}),
    ],
)
def test_without_a_limit_there_is_none(
    tree: Tree, membership: str, files: dict[str, object]
) -> None:
    assert tree.limit(membership, files) is None


def test_without_groups_there_is_none(tmp_path: Path) -> None:
    assert memory_limits(tmp_path / "no", tmp_path / "neither") == ()


def test_host_memory_is_the_smaller_of_the_two(tree: Tree) -> None:
    tree.limit("0::/job\n", {"job/memory.max": GIB, "job/memory.current": GIB // 4})
    host = host_memory(tree.root, tree.membership)
    assert host.limit_bytes == host.usable_bytes == GIB
    assert host.installed_bytes > GIB
    assert host.available_bytes == GIB - GIB // 4
    assert host.limited_by == str(tree.root / "job")


def test_what_is_left_may_be_least_in_a_group_with_a_larger_limit(tree: Tree) -> None:
    parent = {"a/memory.max": 10 * GIB, "a/memory.current": 10 * GIB - 5 * 2**20}
    own = {"a/b/memory.max": 8 * GIB, "a/b/memory.current": GIB}
    tree.limit("0::/a/b\n", {**parent, **own})
    host = host_memory(tree.root, tree.membership)
    assert (host.limit_bytes, host.limited_by) == (8 * GIB, str(tree.root / "a/b"))
    assert host.available_bytes == 5 * 2**20


def test_a_limit_beyond_the_machine_does_not_bind(tree: Tree) -> None:
    tree.limit("0::/job\n", {"job/memory.max": 2**61, "job/memory.current": 0})
    host = host_memory(tree.root, tree.membership)
    assert host.usable_bytes == host.installed_bytes
    assert host.available_bytes <= host.installed_bytes


def test_a_group_that_is_over_its_limit_leaves_nothing(tree: Tree) -> None:
    tree.limit("0::/job\n", {"job/memory.max": GIB, "job/memory.current": 2 * GIB})
    assert host_memory(tree.root, tree.membership).available_bytes == 0
