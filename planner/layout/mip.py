"""The layout as a mixed-integer program: for small problems, and to prove.

Scope: building the program and reading its answer; `planner.swap.solver` runs it. One binary for
each pair of buffers that live at one moment says which lies below (the usual model of dynamic
storage allocation). Only layouts lower than the best one known are asked for, so "no solution"
proves that one optimal; offsets are worked out again from the order of the pairs, in integers,
since a solver's numbers are true only to its tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import numpy as np
import pulp

from planner.layout.sections import Ints, Sections
from planner.swap.solver import Status, solve

MOST_PAIRS = 400
"""Measured on two cores of a busy server, random lives: HiGHS 1.16 takes 0.1-0.3 s for 60-80 pairs,
8-11 s for 160-170, and from 13 s up to no answer in 20 s for 330-360.
"""

TOLERANCE = 1e-6
"""Of solvers, relative: what they call optimal is so within this share of the objective."""

MOST_UNITS = 1 << 40
"""Of a height. Binaries may be off by a solver's tolerance (HiGHS: 1e-6), and buffers then overlap
by that share of the height; of more than this, doubles hardly tell what is left of a unit."""

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """`offsets` in units, `[buffers]`, or None when no lower layout was found; `lower` in units is
    what the program proved of every layout.
    """

    offsets: Ints | None
    lower: int


def solve_mip(sections: Sections, *, lower: int, height: int, time_limit_s: float) -> Answer:
    """Look for the lowest layout below `height` units, where none is lower than `lower`.

    Raises:
        planner.swap.solver.SolverError: when no solver is installed, or it failed.
    """
    pairs = _pairs(sections)
    program, below = _program(sections, pairs, lower=lower, most=height - 1)
    outcome = solve(program, time_limit_s=time_limit_s)
    if outcome.status is Status.INFEASIBLE:
        return Answer(None, height)
    if not outcome.is_solved:
        return Answer(None, lower)
    offsets = _stack(sections, pairs, below)
    if offsets is None:
        return Answer(None, lower)
    found = sections.height(offsets)
    if outcome.status is Status.OPTIMAL:
        assert outcome.objective is not None
        # Pushed down it may be higher: what overlapped by the tolerance does so no longer.
        lower = max(lower, math.ceil(min(found, outcome.objective) * (1 - TOLERANCE)))
    return Answer(offsets if found < height else None, lower)


def _pairs(sections: Sections) -> list[Pair]:
    """Pairs of buffers that live at one moment, each once."""
    return [
        (one, int(other))
        for one in range(sections.buffers)
        for other in sections.overlapping(one)
        if one < other
    ]


def _program(
    sections: Sections, pairs: list[Pair], *, lower: int, most: int
) -> tuple[pulp.LpProblem, dict[Pair, pulp.LpVariable]]:
    """Return the program, and by pair the binary that is 1 when the first lies below."""
    program = pulp.LpProblem("layout", pulp.LpMinimize)
    height = program.add_variable("height", lower, most, pulp.LpInteger)
    program += height
    sizes = sections.sizes.tolist()
    offsets = [_offset(program, sections, index, most) for index in range(sections.buffers)]
    for offset, size in zip(offsets, sizes, strict=True):
        program += offset + size <= height
    below: dict[Pair, pulp.LpVariable] = {}
    for one, other in pairs:
        first = below[one, other] = program.add_variable(f"below_{one}_{other}", cat=pulp.LpBinary)
        program += offsets[one] + sizes[one] <= offsets[other] + most * (1 - first)
        program += offsets[other] + sizes[other] <= offsets[one] + most * first
    for pair in _symmetric(sections, pairs):
        program += below[pair] == 1
    return program, below


def _offset(
    program: pulp.LpProblem, sections: Sections, index: int, most: int
) -> pulp.LpAffineExpression:
    alignment = int(sections.alignments[index])
    room = max(0, most - int(sections.sizes[index]))
    if alignment == 1:
        return pulp.lpSum([program.add_variable(f"offset_{index}", 0, room)])
    steps = program.add_variable(f"offset_{index}", 0, room // alignment, pulp.LpInteger)
    return pulp.lpSum([alignment * steps])


def _symmetric(sections: Sections, pairs: list[Pair]) -> list[Pair]:
    """Pairs whose order costs nothing to fix: of equal buffers the one with the lower index lies
    below; without any, a layout may be turned upside down, so the largest pair's order is free.
    """
    keys = list(
        zip(
            sections.first.tolist(),
            sections.last.tolist(),
            sections.sizes.tolist(),
            sections.alignments.tolist(),
            strict=True,
        )
    )
    twins = [(one, other) for one, other in pairs if keys[one] == keys[other]]
    if twins or not pairs or not sections.is_aligned:
        return twins
    return [max(pairs, key=lambda pair: int(sections.sizes[list(pair)].sum()))]


def _stack(
    sections: Sections, pairs: list[Pair], below: dict[Pair, pulp.LpVariable]
) -> Ints | None:
    """Push every buffer down onto what lies below it, in the order of the solver's offsets; None
    where that goes round in a circle: buffers that are smaller than the solver's tolerance is of
    the height.
    """
    under: list[list[int]] = [[] for _ in range(sections.buffers)]
    for one, other in pairs:
        low, high = (one, other) if round(below[one, other].varValue) else (other, one)
        under[high].append(low)
    order = _bottom_up(under)
    if order is None:
        return None
    offsets = np.full(sections.buffers, -1, np.int64)
    for index in order:
        alignment = int(sections.alignments[index])
        floor = max((int(offsets[low] + sections.sizes[low]) for low in under[index]), default=0)
        offsets[index] = -(-floor // alignment) * alignment
    return offsets


def _bottom_up(under: list[list[int]]) -> list[int] | None:
    """Order the buffers so that each comes after what lies under it; None where none does."""
    try:
        return list(TopologicalSorter(dict(enumerate(under))).static_order())
    except CycleError:
        return None
