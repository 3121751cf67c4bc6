"""The crowded core first: what lives at the fullest moments laid out alone, the rest around it.

Scope: one attempt at a problem of which few moments are near the bound. A search of the whole has
to get past hundreds of buffers that have room to spare before it learns that one of the core is in
the wrong place.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from planner.layout.contracts import Layout, OnProgress, Problem
from planner.layout.greedy import orders, place_in_order
from planner.layout.incumbent import Incumbent
from planner.layout.portfolio import solve
from planner.layout.sections import Ints, Sections, cut_sections, to_layout

NEAR_BOUND = 0.97
"""Share of the bound from which on a moment is crowded. Of a Qwen3 32B step of 32K tokens, at 0.97
the core is 481 of 1,246 buffers and a search lays it out at the bound in 1 s; at 0.9 it is 561, and
3 s do not suffice.
"""


def solve_around_core(
    problem: Problem,
    *,
    goal_bytes: int,
    below_bytes: int,
    time_limit_s: float,
    on_progress: OnProgress | None = None,
) -> Layout | None:
    """Lay the core out for `goal_bytes`, then everything else around it, greedily; what ends above
    the goal joins the core, which is laid out again. None when nothing is lower than `below_bytes`,
    or when everything belongs to the core. `time_limit_s` is for all of it; each greedy placement
    begins within it, the first one in any case.
    """
    deadline_s = time.monotonic() + time_limit_s
    sections = cut_sections(problem)
    goal = goal_bytes // sections.unit_bytes
    best = Incumbent(sections)
    is_core = _core(sections)
    while not is_core.all() and (left_s := deadline_s - time.monotonic()) > 0:
        core = Problem(
            tuple(problem.buffers[i] for i in np.flatnonzero(is_core).tolist()),
            problem.alignment_bytes,
        )
        found = solve(core, goal_bytes=goal_bytes, time_limit_s=left_s, on_progress=on_progress)
        if found.height_bytes >= below_bytes:
            break
        begun = _begun(core, found.layout, is_core)
        offsets = _around(sections, begun, is_core, goal, deadline_s)
        best.offer(offsets, "core first")
        left_over = (offsets + sections.sizes > goal) & ~is_core
        if best.height <= goal or not left_over.any():
            break
        is_core = is_core | left_over
    if best.offsets is None:
        return None
    layout = to_layout(problem, sections, best.offsets)
    return layout if layout.height_bytes < below_bytes else None


def _begun(core: Problem, layout: Layout, is_core: npt.NDArray[np.bool_]) -> Ints:
    """The core's indices in the order of its offsets."""
    offsets = np.array([layout.offsets_bytes[b.id] for b in core.buffers], np.int64)
    return np.asarray(np.flatnonzero(is_core)[np.argsort(offsets, kind="stable")])


def _core(sections: Sections) -> npt.NDArray[np.bool_]:
    """Whether each buffer lives at a crowded moment, `[buffers]`."""
    is_crowded = sections.totals >= NEAR_BOUND * sections.bound
    crowded = np.concatenate(([0], np.cumsum(is_crowded)))
    return np.asarray(crowded[sections.last] > crowded[sections.first])


def _around(
    sections: Sections,
    begun: Ints,
    is_core: npt.NDArray[np.bool_],
    goal: int,
    deadline_s: float,
) -> Ints:
    """Place the core in the order `begun` of its offsets, in which each buffer ends as low as it
    was or lower, then the others in the portfolio's orders. Return the lowest, in units.
    """
    best = Incumbent(sections)
    for name, order in orders(sections):
        joined = np.concatenate((begun, order[~is_core[order]]))
        best.offer(place_in_order(sections, joined, best_fit=False), name)
        if best.height <= goal or time.monotonic() >= deadline_s:
            break
    assert best.offsets is not None
    return best.offsets
