"""The portfolio: bound, greedy placements, search, MIP; each only where the one before falls short.

Scope: which stage runs, for how long, and what is known after it. Every layout that leaves this
file has passed the validator.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np

from planner.layout.contracts import Layout, LayoutError, OnProgress, Problem, Progress, Solution
from planner.layout.greedy import orders, place_in_order
from planner.layout.incumbent import Incumbent
from planner.layout.minimise import minimise
from planner.layout.mip import MOST_PAIRS as MOST_MIP_PAIRS
from planner.layout.mip import MOST_UNITS, solve_mip
from planner.layout.sections import Ints, cut_sections, to_layout
from planner.layout.validator import violations
from planner.swap.solver import SolverError, installed_solvers

TIME_LIMIT_S = 60.0

MOST_SEARCH_PAIRS = 4_000_000
"""The search keeps two indices of 8 bytes for each."""

SEARCH_SHARE = 0.5
"""Of the time that is left, where the MIP may follow."""


def solve(
    problem: Problem,
    *,
    goal_bytes: int | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    known: Layout | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Solution:
    """Lay `problem` out as low as `time_limit_s` (wall time) allows. Stops early when the layout is
    proven optimal, or no higher than `goal_bytes`. There is always a layout: that it doesn't fit a
    capacity is said by `Solution.fit`. `known` is a layout to begin with; `seed` is the search's.

    Raises:
        ValueError: when the time limit is not above 0, or `known` is not valid.
        LayoutError: when a stage made an invalid layout.
    """
    check_time_limit(time_limit_s)
    run = _Run(problem, goal_bytes, time_limit_s, on_progress)
    if known is not None:
        run.begin_with(known)
    run.place_greedily()
    if run.is_open:
        run.search(seed)
    if run.is_open:
        run.ask_mip()
    return run.solution()


def check_time_limit(time_limit_s: float) -> None:
    """Raise ValueError unless this is a time."""
    if not time_limit_s > 0:
        raise ValueError(f"time_limit_s is {time_limit_s}: it takes seconds, more than 0")


class _Run:
    """One problem on its way through the stages."""

    def __init__(
        self,
        problem: Problem,
        goal_bytes: int | None,
        time_limit_s: float,
        on_progress: OnProgress | None,
    ) -> None:
        self._start_s = time.monotonic()
        self._deadline_s = self._start_s + time_limit_s
        self._problem = problem
        self._sections = cut_sections(problem)
        self._goal = -1 if goal_bytes is None else goal_bytes // self._sections.unit_bytes
        self._on_progress = on_progress
        self._incumbent = Incumbent(self._sections)
        self._stage = "bound"

    @property
    def is_open(self) -> bool:
        """Whether there is something left to gain, and time to gain it."""
        is_met = self._incumbent.is_optimal or self._incumbent.height <= self._goal
        return not is_met and time.monotonic() < self._deadline_s

    def begin_with(self, known: Layout) -> None:
        """Place the buffers in the order of their known offsets: each ends as low, or lower."""
        found = violations(self._problem, known)
        if found:
            raise ValueError(f"known is not a layout of this problem: {found[0]}")
        offsets = [known.offsets_bytes[buffer.id] for buffer in self._problem.buffers]
        self._place("known", np.argsort(np.array(offsets, np.int64)), best_fit=False)

    def place_greedily(self) -> None:
        """Try the orders, at least one, with the lowest gap before the smallest."""
        for best_fit in (False, True):
            for name, order in orders(self._sections):
                if self._incumbent.offsets is not None and not self.is_open:
                    return
                way = "best fit" if best_fit else "first fit"
                self._place(f"greedy by {name}, {way}", order, best_fit=best_fit)

    def search(self, seed: int) -> None:
        """Search, in all the time that is left unless the MIP may follow."""
        pairs = self._sections.pairs()
        if pairs > MOST_SEARCH_PAIRS:
            return
        self._stage = "search"
        now_s = time.monotonic()
        share = SEARCH_SHARE if self._may_ask_mip(pairs) else 1.0
        minimise(
            self._sections,
            self._incumbent,
            goal=self._goal,
            deadline_s=now_s + share * (self._deadline_s - now_s),
            seed=seed,
            on_attempt=self._tell,
        )

    def ask_mip(self) -> None:
        """Ask for something lower, or for the proof that nothing is. A solver that fails leaves
        what is known as it is.
        """
        if not self._may_ask_mip(self._sections.pairs()):
            return
        self._stage = "mip"
        lower, height = self._incumbent.lower, self._incumbent.height
        left_s = self._deadline_s - time.monotonic()
        with contextlib.suppress(SolverError):
            answer = solve_mip(self._sections, lower=lower, height=height, time_limit_s=left_s)
            if answer.offsets is not None:
                self._incumbent.offer(answer.offsets, self._stage)
            self._incumbent.prove(answer.lower, self._stage)
        self._tell()

    def solution(self) -> Solution:
        """Return what was found, once the validator has passed it."""
        unit, incumbent = self._sections.unit_bytes, self._incumbent
        offsets = np.empty(0, np.int64) if incumbent.offsets is None else incumbent.offsets
        layout = to_layout(self._problem, self._sections, offsets)
        found = violations(self._problem, layout)
        if found:
            raise LayoutError(f"{incumbent.solver} made an invalid layout: {found[0]}")
        solve_s = time.monotonic() - self._start_s
        return Solution(layout, incumbent.lower * unit, incumbent.solver, solve_s)

    def _may_ask_mip(self, pairs: int) -> bool:
        is_small = pairs <= MOST_MIP_PAIRS and self._incumbent.height <= MOST_UNITS
        return is_small and bool(installed_solvers())

    def _place(self, stage: str, order: Ints, *, best_fit: bool) -> None:
        self._stage = stage
        self._incumbent.offer(place_in_order(self._sections, order, best_fit=best_fit), stage)
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        unit, incumbent = self._sections.unit_bytes, self._incumbent
        elapsed_s = time.monotonic() - self._start_s
        heights = incumbent.height * unit, incumbent.lower * unit
        self._on_progress(Progress(self._stage, *heights, elapsed_s))
