"""Greedy placement: buffers in one order after the other, each at the lowest address that is free.

Scope: fast first layouts for problems of any size, and the incumbent of what comes after. Orders by
size, area, duration and start are the usual ones (by size: Pisarchyk and Lee, "Efficient memory
management for deep neural net inference", arXiv 2001.03288, section 5).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.layout.rankings import most_crowded
from planner.layout.sections import Ints, Sections


def orders(sections: Sections) -> Iterator[tuple[str, Ints]]:
    """Yield the portfolio, `name, order` with `order` `[buffers]` of indices, the best first on
    traces of transformers.
    """
    duration = (sections.upper - sections.lower).astype(np.float64)  # An area may pass 2^63.
    area = sections.sizes * duration
    start = sections.lower
    most = most_crowded(sections, np.arange(sections.buffers), sections.totals)
    yield "size", np.lexsort((start, -duration, -sections.sizes))
    yield "duration", np.lexsort((start, -sections.sizes, -duration))
    yield "area", np.lexsort((start, -sections.sizes, -area))
    yield "start", np.lexsort((-duration, -sections.sizes, start))
    yield "end", np.lexsort((-duration, -sections.sizes, -sections.upper))
    yield "crowd", np.lexsort((-area, -duration, -most))


def place_in_order(sections: Sections, order: Ints, *, best_fit: bool) -> Ints:
    """Place every buffer of `order` in turn, and return the offsets in units, `[buffers]`.

    `best_fit`: in the smallest gap that is large enough, the lowest of equals; otherwise in the
    lowest. Above everything when no gap is.
    """
    offsets = np.full(sections.buffers, -1, np.int64)
    for index in order.tolist():
        others = sections.overlapping(index)
        others = others[offsets[others] >= 0]
        starts, ends = offsets[others], offsets[others] + sections.sizes[others]
        size, alignment = int(sections.sizes[index]), int(sections.alignments[index])
        offsets[index] = _free_address(starts, ends, size, alignment, best_fit=best_fit)
    return offsets


def _free_address(starts: Ints, ends: Ints, size: int, alignment: int, *, best_fit: bool) -> int:
    """Find the gap: from the highest end so far, rounded up, to the next start."""
    order = np.argsort(starts)
    starts = starts[order]
    floors = np.zeros(len(starts) + 1, np.int64)
    np.maximum.accumulate(ends[order], out=floors[1:])
    if alignment > 1:
        floors = -(-floors // alignment) * alignment
    gaps = starts - floors[:-1]
    fitting = np.flatnonzero(gaps >= size)
    if not len(fitting):
        return int(floors[-1])
    chosen = fitting[np.argmin(gaps[fitting])] if best_fit else fitting[0]
    return int(floors[chosen])
