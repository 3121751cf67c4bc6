"""A problem in arrays: time cut into sections, sizes in units.

Scope: what every solver reads and none writes. Between a moment at which something begins and the
next at which something ends, the set of live buffers only grows; so what lives at the end of such a
stretch, a *section*, says all about it (the maximal cliques of the interval graph, in order of
time). The largest sum of a section is the lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.layout.contracts import Layout, Problem

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Sections:
    """`[buffers]` int64 arrays: `sizes` and `alignments` in units of `unit_bytes`, `lower` and
    `upper` in the problem's time, `first` and `last` the half-open range of sections in which a
    buffer lives. `totals` `[sections]` is the sum of the sizes that live there.
    """

    unit_bytes: int
    sizes: Ints
    alignments: Ints
    lower: Ints
    upper: Ints
    first: Ints
    last: Ints
    totals: Ints

    @property
    def buffers(self) -> int:
        return len(self.sizes)

    @property
    def is_aligned(self) -> bool:
        """Whether every multiple of the unit is a good offset for every buffer."""
        return bool((self.alignments == 1).all())

    @property
    def bound(self) -> int:
        """The largest live sum, in units: no layout is lower."""
        return int(self.totals.max(initial=0))

    def overlapping(self, index: int) -> Ints:
        """Return the indices of the buffers that live at one moment with this one, without it."""
        mask = (self.first < self.last[index]) & (self.last > self.first[index])
        mask[index] = False
        return np.flatnonzero(mask)

    def pairs(self) -> int:
        """Return how many pairs of buffers live at one moment."""
        begun = np.searchsorted(np.sort(self.first), self.last, side="left")
        ended = np.searchsorted(np.sort(self.last), self.first, side="right")
        return int((begun - ended - 1).sum()) // 2

    def height(self, offsets: Ints) -> int:
        return int((offsets + self.sizes).max(initial=0))


def cut_sections(problem: Problem) -> Sections:
    """Cut the time of `problem` into sections, and measure it in the largest unit that serves."""
    buffers = problem.buffers
    grain = problem.granularity_bytes
    sizes_bytes = [-(-buffer.size_bytes // grain) * grain for buffer in buffers]
    alignments_bytes = [problem.alignment_of(buffer) for buffer in buffers]
    unit = _unit(sizes_bytes, alignments_bytes)
    sizes = _ints([size // unit for size in sizes_bytes])
    lower = _ints([buffer.lower for buffer in buffers])
    upper = _ints([buffer.upper for buffer in buffers])
    first, last, count = _ranges(lower, upper)
    return Sections(
        unit_bytes=unit,
        sizes=sizes,
        alignments=_ints([max(1, alignment // unit) for alignment in alignments_bytes]),
        lower=lower,
        upper=upper,
        first=first,
        last=last,
        totals=_totals(first, last, sizes, count),
    )


def to_layout(problem: Problem, sections: Sections, offsets: Ints) -> Layout:
    """Turn offsets in units, `[buffers]`, into a layout in bytes."""
    unit = sections.unit_bytes
    pairs = zip(problem.buffers, offsets.tolist(), strict=True)
    return layout_at(problem, {buffer.id: offset * unit for buffer, offset in pairs})


def layout_at(problem: Problem, offsets_bytes: Mapping[str, int]) -> Layout:
    """Return the layout with these offsets, and the height that it has."""
    grain = problem.granularity_bytes
    ends = (offsets_bytes[b.id] + -(-b.size_bytes // grain) * grain for b in problem.buffers)
    return Layout(offsets_bytes, max(ends, default=0))


def _unit(sizes_bytes: Sequence[int], alignments_bytes: Sequence[int]) -> int:
    """The largest unit that all sizes are multiples of, and with them every offset of buffers that
    rest on each other; where that misses an alignment, one of which alignments are multiples too.
    """
    unit = math.gcd(*sizes_bytes) or 1
    if any(unit % alignment for alignment in alignments_bytes):
        return math.gcd(unit, *alignments_bytes)
    return unit


def _ranges(lower: Ints, upper: Ints) -> tuple[Ints, Ints, int]:
    """Number the sections: one is complete at each end that follows a beginning."""
    starts = np.unique(lower)
    ends = np.unique(upper)
    before = np.searchsorted(starts, ends, side="left")  # beginnings strictly before each end
    closing = ends[np.flatnonzero(np.diff(before, prepend=0) > 0)]
    first = np.searchsorted(closing, lower, side="right")
    last = np.searchsorted(closing, upper, side="right")
    return first.astype(np.int64), last.astype(np.int64), len(closing)


def _totals(first: Ints, last: Ints, sizes: Ints, count: int) -> Ints:
    changes = np.zeros(count + 1, np.int64)
    np.add.at(changes, first, sizes)
    np.add.at(changes, last, -sizes)
    return np.cumsum(changes)[:count]


def _ints(values: Sequence[int]) -> Ints:
    return np.asarray(values, dtype=np.int64).reshape(len(values))
