"""What the host says of itself."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import numpy
import psutil
import pytest
import torch

from memo.doctor import host


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("always [madvise] never\n", "madvise"),
        ("[always] madvise never\n", "always"),
        ("always madvise [never]\n", "never"),
        ("nothing\n", None),
    ],
)
def test_the_setting_in_brackets_counts(tmp_path: Path, text: str, setting: str | None) -> None:
    path = tmp_path / "enabled"
    path.write_text(text, encoding="utf-8")
    assert host.huge_pages(path) == setting


def test_another_kernel_has_no_huge_pages(tmp_path: Path) -> None:
    assert host.huge_pages(tmp_path / "no") is None


def test_versions_are_those_of_the_modules() -> None:
    found = host.versions(["torch", "numpy", "no-such-package-here"])
    assert found == {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "no-such-package-here": None,
    }


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: A: fast one\nmodel name\t: B\n", "utf-8")
    assert host.processor(path) == "A: fast one"
    assert host.processor(tmp_path / "no")


def test_memlock_is_the_soft_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert host.memlock_bytes() == (None if soft == resource.RLIM_INFINITY else soft)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, hard))
        assert host.memlock_bytes() == 65536
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def test_memory_without_a_group_is_the_machines(tmp_path: Path) -> None:
    found = host.host_memory(tmp_path / "no", tmp_path / "neither")
    assert found.installed_bytes == found.usable_bytes == psutil.virtual_memory().total
    assert 0 < found.available_bytes <= found.installed_bytes
    assert (found.limit_bytes, found.limited_by) == (None, None)
