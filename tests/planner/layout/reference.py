"""The lowest layout by brute force, and problems to compare with it.

Scope: problems of a few buffers. Any layout, pushed down, is one in which the buffers are stacked
in the order of their offsets; so trying every order finds the lowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from hypothesis import strategies as st

from planner.layout import Buffer, Problem


def live(problem: Problem, moment: int) -> list[Buffer]:
    return [b for b in problem.buffers if b.lower <= moment < b.upper]


def moments(problem: Problem) -> range:
    lowest = min((b.lower for b in problem.buffers), default=0)
    return range(lowest, max((b.upper for b in problem.buffers), default=0))


def occupied(problem: Problem, buffer: Buffer) -> int:
    """The buffer's size rounded up to the granularity."""
    grain = problem.granularity_bytes
    return (buffer.size_bytes + grain - 1) // grain * grain


def largest_live_sum(problem: Problem) -> int:
    """The live sum only grows at the beginning of a life."""
    sizes = {buffer.id: occupied(problem, buffer) for buffer in problem.buffers}
    starts = {buffer.lower for buffer in problem.buffers}
    sums = (sum(sizes[buffer.id] for buffer in live(problem, start)) for start in starts)
    return max(sums, default=0)


def lowest_height(problem: Problem) -> int:
    rows = [
        (buffer.lower, buffer.upper, occupied(problem, buffer), problem.alignment_of(buffer))
        for buffer in problem.buffers
    ]
    return min(_stacked(order) for order in permutations(rows))


def _stacked(order: Sequence[tuple[int, int, int, int]]) -> int:
    """The height when each `lower, upper, size, alignment` is put upon all before it."""
    placed: list[tuple[int, int, int]] = []
    for lower, upper, size, alignment in order:
        ends = [end for start, stop, end in placed if lower < stop and start < upper]
        offset = -(-max(ends, default=0) // alignment) * alignment
        placed.append((lower, upper, offset + size))
    return max((end for *_, end in placed), default=0)


def problems(*, most: int = 6, aligned: bool = True) -> st.SearchStrategy[Problem]:
    """Problems of up to `most` buffers; `aligned`: some with alignments of several kinds."""
    alignments = st.sampled_from([1, 1, 1, 2, 3, 4]) if aligned else st.just(1)
    row = st.tuples(st.integers(-2, 7), st.integers(1, 5), st.integers(1, 13), alignments)
    return st.builds(_problem, st.lists(row, min_size=0, max_size=most), st.sampled_from([1, 1, 4]))


def _problem(rows: list[tuple[int, int, int, int]], alignment_bytes: int) -> Problem:
    buffers = (
        Buffer(f"b{i}", lower, lower + duration, size, alignment)
        for i, (lower, duration, size, alignment) in enumerate(rows)
    )
    return Problem(tuple(buffers), alignment_bytes)


def problem_of(*rows: tuple[int, int, int], alignment_bytes: int = 1) -> Problem:
    """Buffers `b0`, `b1`, ... of `lower, upper, size`."""
    buffers = (Buffer(f"b{i}", *row) for i, row in enumerate(rows))
    return Problem(tuple(buffers), alignment_bytes)
