"""A block device as a spool's file, once it is proved that nothing on it is lost.

Scope: opening. What is proved: it is a block device; nobody has it mounted or in use, nor mounts it
while it is open (the kernel's exclusive open); and it holds no file system, partition table, RAID
or volume that `blkid` knows.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

from ssd.contracts import SpillError, SpoolFile
from ssd.direct import go_direct
from ssd.faults import spill_error

_NOTHING_FOUND = 2
"""blkid's exit status."""


def open_device(path: Path, size_bytes: int) -> SpoolFile:
    """The device's first `size_bytes`. What is written there stays there.

    Raises:
        SpillError: when the device is in use, holds something, is too small, or can't be proved to
            be empty.
    """
    fd = _open_alone(path)
    try:
        _prove_empty(path)
        _check_size(fd, path, size_bytes)
        alignment = go_direct(fd)
        if alignment is None:
            raise spill_error("use direct I/O", path, errno.EINVAL)
    except BaseException:
        os.close(fd)
        raise
    return SpoolFile(fd, path, size_bytes, True, alignment)


def grow_device(file: SpoolFile, size_bytes: int) -> SpoolFile:
    """The same device, used up to `size_bytes`.

    Raises:
        SpillError: when it is too small.
    """
    _check_size(file.fd, file.directory, size_bytes)
    return replace(file, size_bytes=size_bytes)


def _check_size(fd: int, path: Path, size_bytes: int) -> None:
    held_bytes = os.lseek(fd, 0, os.SEEK_END)
    if held_bytes < size_bytes:
        detail = f"the device has {held_bytes:,}"
        raise spill_error(f"reserve {size_bytes:,} bytes", path, errno.ENOSPC, detail=detail)


def _open_alone(path: Path) -> int:
    try:
        if not stat.S_ISBLK(path.stat().st_mode):
            raise ValueError(f"{path} is no block device, which raw=True takes")
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise spill_error("open the device alone", path, error.errno) from error


def _prove_empty(path: Path) -> None:
    command = ["blkid", "--probe", "--output", "export", str(path)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise _unproved(path, f"blkid could not be run: {error}") from error
    if answer.returncode != _NOTHING_FOUND:
        found = ", ".join(answer.stdout.split()) or answer.stderr.strip() or "something ambiguous"
        raise _unproved(path, f"blkid found {found}")


def _unproved(path: Path, detail: str) -> SpillError:
    message = (
        f"{path} is not proved to be empty: {detail}; if nothing on it is wanted, clear it with "
        "wipefs, or name another"
    )
    return SpillError(message, directory=path, operation="prove the device empty")
