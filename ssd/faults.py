"""What an errno means here: whether to try again, and what to tell.

Scope: a table and two functions. Who tries again, and how often, is in `ssd.requests`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ssd.contracts import SpillError

TRANSIENT = frozenset({errno.EINTR, errno.EAGAIN, errno.EIO})
"""Errors that may be gone the next time."""

_DISK = "see the kernel's log (dmesg), and use another disk"
_OTHER_PLACE = "name another directory"
_WHAT_TO_DO = {
    errno.ENOSPC: "free space there, ask for a smaller spool, or name another directory",
    errno.EDQUOT: "raise the quota there, ask for a smaller spool, or name another directory",
    errno.EFBIG: "ask for a smaller spool or more directories: files can't be that large there",
    errno.EIO: _DISK,
    errno.ENXIO: _DISK,
    errno.ENODEV: _DISK,
    errno.EINVAL: "give buffers that are aligned as the spool says, or report this as a bug",
    errno.ENOENT: "create the directory, or, if it is there, name one on a disk: it keeps no files",
    errno.ENOTDIR: "name a directory",
    errno.EACCES: "make the directory writable for this user, or name another",
    errno.EPERM: "make the directory writable for this user, or name another",
    errno.EROFS: _OTHER_PLACE,
    errno.EBUSY: "unmount the device, stop what uses it, or name another",
    errno.EMFILE: "close files, or raise the limit of this process (ulimit -n)",
    errno.ENFILE: "close files, or raise the limit of this machine (fs.file-max)",
    errno.ENOMEM: "free memory, or raise the limit of locked memory (ulimit -l)",
    errno.ENOSYS: "use the thread engine",
}


def spill_error(
    operation: str, directory: Path, number: int | None, *, detail: str = ""
) -> SpillError:
    """An error to raise. `operation` reads after "could not"; `number` None: not the system's."""
    reason = detail
    if number is not None:
        name = errno.errorcode.get(number, str(number))
        reason = f"{detail}{': ' if detail else ''}{os.strerror(number)} ({name})"
    todo = _WHAT_TO_DO.get(number, _OTHER_PLACE) if number is not None else _DISK
    message = f"could not {operation} in {directory}: {reason}; {todo}"
    return SpillError(message, directory=directory, operation=operation, errno=number)
