"""What a memory layout is asked and answered in: buffers, a problem, a layout, a solution.

Scope: plain data, no algorithm. Dynamic storage allocation: each buffer has a size and a time in
which it lives, both known beforehand, and is to be given an address in one arena so that no two
that live at one moment share a byte and the arena is as small as it can be.

Times are integers in any unit, half-open: a buffer lives on `[lower, upper)`, so one that ends at t
and one that begins at t may share bytes. All sizes and offsets are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

CUDA_ALIGNMENT_BYTES = 512
"""What `cudaMalloc` and PyTorch's caching allocator align to."""


MOST_BYTES = 1 << 60
"""Of all buffers with their alignments. Solvers count in int64."""

MOST_TIME = 1 << 60
"""How far a moment may be from 0."""


class LayoutError(RuntimeError):
    """A solver's layout failed the validator: a fault of ours, not of the problem."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """`size_bytes` that live on `[lower, upper)`. Its offset is a multiple of `alignment_bytes`
    and of the problem's alignment.

    Raises:
        ValueError: on a size below 1, a life that is empty or far off, or an alignment below 1.
    """

    id: str
    lower: int
    upper: int
    size_bytes: int
    alignment_bytes: int = 1

    def __post_init__(self) -> None:
        if self.size_bytes < 1:
            raise ValueError(f"buffer {self.id}: size is {self.size_bytes}: it takes 1 or more")
        if self.upper <= self.lower:
            raise ValueError(
                f"buffer {self.id}: lives on [{self.lower}, {self.upper}): upper must be above "
                "lower"
            )
        if max(-self.lower, self.upper) > MOST_TIME:
            raise ValueError(
                f"buffer {self.id}: lives on [{self.lower}, {self.upper}): times take "
                f"{MOST_TIME} at most"
            )
        if self.alignment_bytes < 1:
            raise ValueError(
                f"buffer {self.id}: alignment is {self.alignment_bytes}: it takes 1 or more"
            )


@dataclass(frozen=True, slots=True)
class Problem:
    """Buffers to be laid out, each at a multiple of `alignment_bytes` and of its own.

    Raises:
        ValueError: on an alignment below 1, two buffers of one id, or more than `MOST_BYTES`.
    """

    buffers: tuple[Buffer, ...]
    alignment_bytes: int = CUDA_ALIGNMENT_BYTES

    def __post_init__(self) -> None:
        if self.alignment_bytes < 1:
            raise ValueError(f"alignment is {self.alignment_bytes}: it takes 1 or more")
        seen: set[str] = set()
        for buffer in self.buffers:
            if buffer.id in seen:
                raise ValueError(f"two buffers have the id {buffer.id!r}")
            seen.add(buffer.id)
        stacked = sum(b.size_bytes + self.alignment_of(b) for b in self.buffers)
        if stacked > MOST_BYTES:
            raise ValueError(
                f"the buffers have {stacked:,} bytes: at most {MOST_BYTES:,} are taken"
            )

    @property
    def granularity_bytes(self) -> int:
        """What every offset is a multiple of. A buffer occupies its size rounded up to it: what
        lies between is of no use to another.
        """
        return math.gcd(*map(self.alignment_of, self.buffers)) or self.alignment_bytes

    def alignment_of(self, buffer: Buffer) -> int:
        return math.lcm(self.alignment_bytes, buffer.alignment_bytes)


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets by buffer id, and the bytes that the arena takes: the highest end of a buffer, its
    size rounded up to the problem's granularity.
    """

    offsets_bytes: Mapping[str, int]
    height_bytes: int


class Fit(StrEnum):
    """What a solution says of a capacity: `IMPOSSIBLE` is proven, `NOT_FOUND` is not."""

    FITS = "fits"
    NOT_FOUND = "not found"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class Solution:
    """The best layout found. No layout is lower than `lower_bound_bytes`; `solver` names the stage
    that found this one, or proved it optimal; `solve_s` is wall time.
    """

    layout: Layout
    lower_bound_bytes: int
    solver: str
    solve_s: float

    @property
    def height_bytes(self) -> int:
        return self.layout.height_bytes

    @property
    def optimal(self) -> bool:
        return self.height_bytes == self.lower_bound_bytes

    @property
    def gap(self) -> float:
        """How far above the lower bound, as a share of the height; 0 when proven optimal."""
        return (self.height_bytes - self.lower_bound_bytes) / max(1, self.height_bytes)

    def fit(self, capacity_bytes: int) -> Fit:
        if self.height_bytes <= capacity_bytes:
            return Fit.FITS
        return Fit.IMPOSSIBLE if capacity_bytes < self.lower_bound_bytes else Fit.NOT_FOUND


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a solver stands: told after each attempt."""

    stage: str
    height_bytes: int
    lower_bound_bytes: int
    elapsed_s: float


OnProgress = Callable[[Progress], None]
