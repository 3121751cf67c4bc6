"""From "is there a layout within this capacity?" to the lowest layout that time allows.

Scope: which capacities the search is asked for, with which rankings, for how long. Attempts are
short at first and twice as long in every round, since one that hasn't ended soon rarely ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

import numpy as np

from planner.layout.incumbent import Incumbent
from planner.layout.rankings import Ranking, noisy_rankings, plain_rankings
from planner.layout.search import Budget, Search
from planner.layout.sections import Sections
from planner.layout.topology import Topology, build_topology

FIRST_PLACEMENTS_PER_BUFFER = 8
"""Budget of an attempt in the first round: enough to get to the end past a few dead ends."""

NOISY_A_ROUND = 2
"""Random rankings in a round, beside the plain ones."""

EASIER = (0.25, 0.6)
"""Other capacities that are tried when the one wanted was not met: shares of the way from it to the
best height.
"""

EASIER_BUDGET = 0.25
"""Their budget, as a share of that for the capacity wanted."""

SOLVER = "search"


class _Minimising:
    def __init__(
        self,
        topology: Topology,
        incumbent: Incumbent,
        goal: int,
        deadline_s: float,
        on_attempt: Callable[[], None],
    ) -> None:
        self._topology = topology
        self._incumbent = incumbent
        self._goal = goal
        self._deadline_s = deadline_s
        self._on_attempt = on_attempt

    @property
    def is_over(self) -> bool:
        is_met = self._incumbent.is_optimal or self._incumbent.height <= self._goal
        return is_met or time.monotonic() >= self._deadline_s

    @property
    def wanted(self) -> int:
        return max(self._goal, self._incumbent.lower)

    def go_on(self, search: Search | None, ranking: Ranking, placements: int) -> Search:
        """Go on with a search for the capacity wanted, or begin one if it is for another."""
        if search is None or search.capacity != self.wanted:
            search = Search(self._topology, self.wanted, ranking)
        if not self.is_over and not self._attempt(search, placements):
            while self._come_closer(ranking, int(placements * EASIER_BUDGET)):
                pass
        return search

    def _come_closer(self, ranking: Ranking, placements: int) -> bool:
        """Try easier capacities; True when one was met, which brings the next ones down."""
        for share in EASIER:
            capacity = self.wanted + int(share * (self._incumbent.height - self.wanted))
            if self.is_over or capacity == self.wanted:
                return False
            if self._attempt(Search(self._topology, capacity, ranking), placements):
                return True
        return False

    def _attempt(self, search: Search, placements: int) -> bool:
        """Spend the placements; True when the search found a layout."""
        outcome = search.run(Budget(placements, self._deadline_s))
        if outcome.offsets is not None:
            self._incumbent.offer(outcome.offsets, SOLVER)
        elif outcome.is_proof:
            self._incumbent.prove(search.capacity + 1, SOLVER)
        self._on_attempt()
        return outcome.offsets is not None


def minimise(
    sections: Sections,
    incumbent: Incumbent,
    *,
    goal: int,
    deadline_s: float,
    seed: int,
    on_attempt: Callable[[], None],
) -> None:
    """Better `incumbent` until it is proven optimal, its height is at most `goal` units, or
    `time.monotonic` passes `deadline_s`. `on_attempt` is called after each attempt.
    """
    run = _Minimising(build_topology(sections), incumbent, goal, deadline_s, on_attempt)
    placements = FIRST_PLACEMENTS_PER_BUFFER * sections.buffers
    plain = plain_rankings(sections)
    searches: list[Search | None] = [None] * len(plain)
    noisy = noisy_rankings(sections, np.random.default_rng(seed))
    while not run.is_over:
        for at, ranking in enumerate(plain):
            searches[at] = run.go_on(searches[at], ranking, placements)
        for ranking in islice(noisy, NOISY_A_ROUND):
            run.go_on(None, ranking, placements)
        placements *= 2
