"""Disks as people write them: `8x7TB@6GB/s`.

Scope: one option's spelling.
"""

from __future__ import annotations

import re

from planner.hardware.contracts import Disks
from planner.sizes import parse_bytes, parse_rate

_DISKS = re.compile(r"(?:(\d+)\s*[x×])?\s*([^@]+?)\s*@\s*([^@:]+?)(?:\s*:\s*([^@:]+))?")
_TAKES = "takes COUNTxSIZE@RATE of each disk, as in 8x7TB@6GB/s, or 2x1TB@3GB/s:5GB/s (write:read)"


def parse_disks(text: str, name: str = "ssd") -> Disks:
    """`8x7TB@6GB/s`: eight disks of 7 TB, each of which writes and reads 6 GB/s. The count may be
    left out; two rates, `@3GB/s:5GB/s`, are for writing and for reading.

    Raises:
        ValueError: for anything else; opens with `name`.
    """
    match = _DISKS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{name} is {text!r}: {_TAKES}")
    count, size, write, read = match.groups()
    try:
        return Disks(
            count=int(count or 1),
            size_bytes=parse_bytes(size, "the size"),
            write_bytes_per_s=parse_rate(write, "the rate"),
            read_bytes_per_s=parse_rate(read or write, "the rate"),
        )
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}, where {error}; {_TAKES}") from error
