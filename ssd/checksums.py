"""Checksums of what is written, compared with what comes back.

Scope: one CRC-32 for each piece of an extent; where they are computed is the queue's business.
`zlib.crc32` releases the interpreter's lock, and takes about a second of a core for each GB.
"""

from __future__ import annotations

import zlib

from ssd.contracts import Operation, Piece, SpillError


class Checksums:
    """Of pieces by file and offset: pieces of one extent are cut alike each time."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def check(self, operation: Operation, piece: Piece) -> SpillError | None:
        """Note the sum of a piece written, or compare that of a piece read."""
        found = zlib.crc32(piece.buffer)
        key = (piece.file.fd, piece.offset_bytes)
        if operation is Operation.WRITE:
            self._known[key] = found
            return None
        return None if self._known.get(key) == found else _corrupted(piece)

    def forget(self, fd: int, offset_bytes: int) -> None:
        """The piece's extent was given back."""
        self._known.pop((fd, offset_bytes), None)


def _corrupted(piece: Piece) -> SpillError:
    directory = piece.file.directory
    return SpillError(
        f"could not read in {directory}: the {len(piece.buffer):,} bytes at {piece.offset_bytes:,} "
        "are not those that were written; the disk, its cable or the memory is faulty: see the "
        "kernel's log (dmesg), and use another disk",
        directory=directory,
        operation=Operation.READ,
    )
