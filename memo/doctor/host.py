"""The host: its memory, its limits, its kernel's settings, and the versions that matter.

Scope: asking, nothing is measured.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil

from memo.doctor import cgroup
from memo.doctor.contracts import HostMemory

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "liburing", "pulp")


def host_memory(root: Path = cgroup.ROOT, membership: Path = cgroup.MEMBERSHIP) -> HostMemory:
    """What the machine has, and what this process may take of it."""
    memory = psutil.virtual_memory()
    limits = cgroup.memory_limits(root, membership)
    if not limits:
        return HostMemory(installed_bytes=memory.total, available_bytes=memory.available)
    return HostMemory(
        installed_bytes=memory.total,
        available_bytes=min(memory.available, *(limit.left_bytes for limit in limits)),
        limit_bytes=limits[0].limit_bytes,
        limited_by=str(limits[0].path),
    )


def memlock_bytes() -> int | None:
    """How much this process may lock into memory (`ulimit -l`); None for no limit, or no such
    thing.
    """
    try:
        import resource  # the module exists on Unix only
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def huge_pages(path: Path = HUGE_PAGES) -> str | None:
    """`always`, `madvise` or `never`: the word in brackets."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:  # another kernel
        return None
    words = [word.strip("[]") for word in text.split() if word.startswith("[")]
    return words[0] if words else None


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Of Python, and of packages without importing them."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def processor(path: Path = CPU_INFO) -> str:
    """The processor's name as the kernel has it, or the platform's word."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
