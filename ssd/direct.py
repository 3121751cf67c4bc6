"""Direct I/O: whether a file takes it, and what alignment it asks for.

Scope: one open file. The alignment is what the kernel says (`statx`), or, where it is older than
the question, what a trial shows; it is never assumed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from ssd.buffers import aligned_buffer
from ssd.contracts import Alignment

_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_DIO_ALIGN_AT_BYTES = 0x98  # of stx_dio_mem_align and stx_dio_offset_align, two uint32
_TRIED_BYTES = (512, 4096)


def go_direct(fd: int) -> Alignment | None:
    """Let the file go around the page cache; None: it can't, and goes through it as before. Bytes
    of an empty file, or of a device, may be overwritten.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:  # EINVAL: how a file system says no
        return None
    known, alignment = told_alignment(fd)
    if not known:
        alignment = tried_alignment(fd)
    if alignment is None:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return alignment


def told_alignment(fd: int) -> tuple[bool, Alignment | None]:
    """Whether the kernel answers, and what: None is no direct I/O."""
    statx = getattr(ctypes.CDLL(None), "statx", None)
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer) != 0:
        return False, None
    (mask,) = struct.unpack_from("=I", answer, 0)
    memory_bytes, offset_bytes = struct.unpack_from("=II", answer, _DIO_ALIGN_AT_BYTES)
    if not mask & _STATX_DIOALIGN:
        return False, None
    return True, Alignment(memory_bytes, offset_bytes) if offset_bytes else None


def tried_alignment(fd: int) -> Alignment | None:
    """The least alignment with which a write succeeds."""
    buffer = aligned_buffer(2 * _TRIED_BYTES[-1])
    for size_bytes in _TRIED_BYTES:
        part = buffer[size_bytes : 2 * size_bytes]
        try:
            os.pwritev(fd, [part], size_bytes)
        except OSError:  # EINVAL: not aligned enough
            continue
        return Alignment(size_bytes, size_bytes)
    return None


def file_system_of(fd: int) -> str:
    """The kind of the file system on which the file lies ("ext4"); "" when the kernel hides it."""
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no /proc
        return ""
    mount = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")
    return next((_kind(line) for line in mounts if line.split()[0] == mount), "")


def _kind(mount: str) -> str:
    # "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw": optional fields before "-".
    return mount.partition(" - ")[2].split()[0]
