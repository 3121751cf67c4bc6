"""The file under a spool: one in a directory, without a name, its space reserved.

Scope: opening and closing; block devices are in `ssd.devices`. The file has no name from the start
(`O_TMPFILE`, or unlinked at once), so that nothing is left behind however the process ends, and
nobody else can read it (mode 0600). The space is reserved before the first byte: a full disk is an
error before training, not in the middle of it.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

from ssd.contracts import Alignment, SpillError, SpillWarning, SpoolFile
from ssd.direct import file_system_of, go_direct
from ssd.faults import spill_error

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
"""File systems that are memory by another name; direct I/O means nothing there."""


def open_file(directory: Path, size_bytes: int) -> SpoolFile:
    """An anonymous file of `size_bytes`; not truly reserved where a file system never overwrites in
    place (Btrfs, ZFS).

    Raises:
        SpillError: when the directory is missing or can't be written, and when space is short.
    """
    fd = _anonymous(directory)
    try:
        kind = file_system_of(fd)
        alignment = None if kind in _IN_MEMORY else go_direct(fd)
        _reserve(fd, directory, size_bytes)
    except BaseException:
        os.close(fd)
        raise
    if alignment is None:
        _warn_of_cache(kind, directory)
    return SpoolFile(fd, directory, size_bytes, alignment is not None, alignment or Alignment())


def grow_file(file: SpoolFile, size_bytes: int) -> SpoolFile:
    """The same file with its space reserved up to `size_bytes`; what is in it stays.

    Raises:
        SpillError: when space is short; the file is as it was.
    """
    try:
        _reserve(file.fd, file.directory, size_bytes, file.size_bytes)
    except SpillError:
        shrink_file(file)  # a failed attempt may have taken what there was
        raise
    return replace(file, size_bytes=size_bytes)


def shrink_file(file: SpoolFile) -> None:
    """Give back what lies behind the file's size; a device has nothing to give back."""
    if stat.S_ISREG(os.fstat(file.fd).st_mode):
        os.ftruncate(file.fd, file.size_bytes)


def close_file(file: SpoolFile) -> None:
    """Let the file and its space go."""
    os.close(file.fd)


def _anonymous(directory: Path) -> int:
    try:
        if stat.S_ISBLK(directory.stat().st_mode):
            raise ValueError(f"{directory} is a block device, which takes raw=True")
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise spill_error("create a file", directory, error.errno) from error


def _reserve(fd: int, directory: Path, size_bytes: int, start_bytes: int = 0) -> None:
    # Without fallocate (ext2, NFS before 4.2) the C library writes single bytes,
    # which a direct descriptor refuses; and only new space, for it would write over transfers.
    try:
        plain = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(plain, start_bytes, size_bytes - start_bytes)
        finally:
            os.close(plain)
    except OSError as error:
        raise spill_error(f"reserve {size_bytes:,} bytes", directory, error.errno) from error


def _warn_of_cache(kind: str, directory: Path) -> None:
    if kind in _IN_MEMORY:
        what = f"{directory} is memory ({kind}), not a disk: what is spilled there frees nothing"
    else:
        what = (
            f"{directory} ({kind or 'unknown file system'}) takes no direct I/O: what is spilled "
            "there goes through the page cache, which costs speed and memory"
        )
    warnings.warn(f"{what}; name a directory on a local disk", SpillWarning, stacklevel=5)
