"""How a spool lies over its files: in blocks, one file after the other.

Scope: arithmetic. Block k of the spool is block k // n of file k % n, so that one extent keeps all
disks busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stripe:
    """`[offset_bytes, offset_bytes + size_bytes)` of a file, which holds the extent's bytes from
    `position_bytes` on.
    """

    file_index: int
    offset_bytes: int
    position_bytes: int
    size_bytes: int


def cut(start: int, size_bytes: int, *, block_bytes: int, files: int) -> Iterator[Stripe]:
    """The stripes of the spool's bytes `[start, start + size_bytes)`, none longer than a block."""
    position_bytes = 0
    while position_bytes < size_bytes:
        block, inside_bytes = divmod(start + position_bytes, block_bytes)
        length_bytes = min(block_bytes - inside_bytes, size_bytes - position_bytes)
        offset_bytes = block // files * block_bytes + inside_bytes
        yield Stripe(block % files, offset_bytes, position_bytes, length_bytes)
        position_bytes += length_bytes


def shares(size_bytes: int, *, block_bytes: int, files: int) -> list[int]:
    """The bytes that each file has to have for a spool of `size_bytes`."""
    rounds, rest_bytes = divmod(size_bytes, block_bytes * files)
    return [
        rounds * block_bytes + min(max(rest_bytes - index * block_bytes, 0), block_bytes)
        for index in range(files)
    ]
