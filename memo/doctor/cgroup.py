"""The memory limit of this process's control group, of either version.

Scope: reading files. A group's limit holds for all below it together, so the least of its ancestors
counts; what is left below each of them need not be least where the limit is.
Where the process's path is not under the root (a container that shows its own group as the root),
the root's own limit is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

_UNLIMITED_BYTES = 1 << 62
"""Version 1 has no word for it: its limit is then the largest multiple of a page."""


@dataclass(frozen=True, slots=True)
class GroupLimit:
    """`used_bytes` count without file pages that can go at once."""

    path: Path
    limit_bytes: int
    used_bytes: int

    @property
    def left_bytes(self) -> int:
        return max(self.limit_bytes - self.used_bytes, 0)


def memory_limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> tuple[GroupLimit, ...]:
    """All limits above this process, the least one first; none where there are no groups."""
    limits = [limit for folder in _folders(root, membership) if (limit := _limit(folder))]
    return tuple(sorted(limits, key=lambda limit: limit.limit_bytes))


def _folders(root: Path, membership: Path) -> Iterator[Path]:
    """The process's groups in every hierarchy that counts memory, and all above them."""
    for line in (_text(membership) or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            tops = [root / "memory"]
        elif number == "0":
            tops = [root, root / "unified"]
        else:
            continue
        for top in tops:
            yield from _upwards(top, path)


def _upwards(top: Path, path: str) -> Iterator[Path]:
    folder = top / path.lstrip("/")
    while folder != top and top in folder.parents:
        yield folder
        folder = folder.parent
    yield top


def _limit(folder: Path) -> GroupLimit | None:
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit_bytes = _number(_text(folder / limit))
        if limit_bytes is not None and limit_bytes < _UNLIMITED_BYTES:
            used_bytes = _number(_text(folder / used)) or 0
            return GroupLimit(folder, limit_bytes, max(used_bytes - _stat(folder, cached), 0))
    return None


def _stat(folder: Path, name: str) -> int:
    for line in (_text(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value) or 0
    return 0


def _number(text: str | None) -> int | None:
    """None for `max` too."""
    return int(text) if text is not None and text.strip().isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # not there, or not for us: that is how it says so
        return None
