"""Depth-first search for a layout within a capacity, over canonical placements.

Scope: one attempt with one ranking of the buffers, to the end of its budget. What is inferred from
a placement is in `state.py`; which capacity and ranking are tried is `minimise.py`'s.

Every layout can be pushed down until each buffer rests on another or on the ground; listed by
(offset, rank), such a *canonical* layout is reached by placing each buffer at its lowest open
offset in turn, and by one list only. So the search places buffers in this order, and an attempt
that ends within its budget without a layout proves that none exists. Dominance, bare placements and
decomposition follow MiniMalloc (see `state.py`); a part that can't be solved sends the search back
to the placement that cut it off, past the parts beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from planner.layout.rankings import Ranking
from planner.layout.sections import Ints
from planner.layout.state import PLACED, Placement, State
from planner.layout.topology import Topology


@dataclass(slots=True)
class Budget:
    """What an attempt may spend: placements tried, and the clock (`time.monotonic`)."""

    placements: int
    deadline_s: float

    def spend(self) -> bool:
        """Count one placement; False when the budget is used up."""
        self.placements -= 1
        if self.placements < 0:
            return False
        return bool(self.placements % 64) or time.monotonic() < self.deadline_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """`offsets` in units, `[buffers]`, or None; then `is_proof` says that no layout exists, rather
    than that the budget was used up.
    """

    offsets: Ints | None
    is_proof: bool = False


class _Part(NamedTuple):
    """Buffers `indices` that live in the sections `[start, stop)` only, some perhaps placed, in
    order of preference. The next placement comes after (offset, rank), where a rank is a place in
    `indices`. When there is none, the search goes back to the choice at `origin`, a place on the
    stack.
    """

    indices: Ints
    start: int
    stop: int
    offset: int
    rank: int
    origin: int


class _Pending(NamedTuple):
    """Parts still to be solved, a linked list."""

    part: _Part
    rest: _Pending | None


@dataclass(slots=True)
class _Frame:
    """A choice of the next buffer in a part. `candidates` are ranks, the first one comes last;
    `rest` is what is to be solved after the part.
    """

    part: _Part
    rest: _Pending | None
    candidates: list[int]
    placement: Placement | None = None


class Search:
    """An attempt at a layout of at most `capacity` units; `ranking` breaks ties."""

    def __init__(self, topology: Topology, capacity: int, ranking: Ranking) -> None:
        self.capacity = capacity
        self._state = State(topology, capacity)
        self._sections = sections = topology.sections
        self._sizes = sections.sizes
        self._ranking = ranking
        self._stack: list[_Frame] = []
        self._is_begun = False

    def run(self, budget: Budget) -> Outcome:
        """Search until the budget is used up, from where the last run ended."""
        if not self._is_begun:
            self._is_begun = True
            if self.capacity < self._sections.bound:
                return Outcome(None, is_proof=True)
            if self._enter(self._roots()):
                return Outcome(self._state.offsets)
        while self._stack:
            frame = self._stack[-1]
            self._take_back(frame)
            if not frame.candidates:
                self._return_to(frame.part.origin)
            elif not budget.spend():
                return Outcome(None)
            elif self._advance(frame):
                return Outcome(self._state.offsets)
        return Outcome(None, is_proof=True)

    def _roots(self) -> _Pending | None:
        crossings = self._state.crossings
        cuts = [section for section in range(1, len(crossings)) if not crossings[section]]
        indices = np.arange(self._sections.buffers)
        return self._split(_Part(indices, 0, len(crossings), 0, -1, origin=-1), cuts, None)

    def _advance(self, frame: _Frame) -> bool:
        """Place the frame's next candidate, and enter what follows; True when all is placed."""
        rank = frame.candidates.pop()
        part = frame.part
        index = int(part.indices[rank])
        frame.placement = self._state.place(index, part.start, part.stop)
        if frame.placement is None:
            return False
        left = part._replace(offset=frame.placement.offset, rank=rank, origin=len(self._stack) - 1)
        cuts = self._state.cuts(index)
        rest = self._split(left, cuts, frame.rest) if cuts else _Pending(left, frame.rest)
        return self._enter(rest)

    def _enter(self, pending: _Pending | None) -> bool:
        """Push a choice for the first part that isn't complete; True when all are."""
        while pending is not None:
            part, pending = pending
            lowest = self._state.lowest[part.indices]
            end = int((lowest + self._sizes[part.indices]).min(initial=PLACED))
            if end < PLACED:
                self._stack.append(_Frame(part, pending, self._candidates(part, lowest, end)))
                return False
        return True

    def _candidates(self, part: _Part, lowest: Ints, end: int) -> list[int]:
        """Return who may be next, last first. Something fits below `end`, so what would begin there
        or above comes later (dominance).
        """
        is_open = (lowest < end) & (lowest >= part.offset)
        is_open[: part.rank + 1] &= lowest[: part.rank + 1] > part.offset
        ranks = np.flatnonzero(is_open)
        order = np.argsort(lowest[ranks], kind="stable")[::-1]
        return list(map(int, ranks[order].tolist()))

    def _split(self, part: _Part, cuts: list[int], rest: _Pending | None) -> _Pending | None:
        """Cut a part at these sections, and put what has buffers left before `rest`."""
        edges = [part.start, *cuts, part.stop]
        left = part.indices[self._state.lowest[part.indices] < PLACED]
        left = self._ranking.order(left, self._state.totals())
        first, last = self._sections.first[left], self._sections.last[left]
        for start, stop in reversed(list(pairwise(edges))):
            inside = left[(first < stop) & (last > start)]
            if len(inside):
                rest = _Pending(
                    part._replace(indices=inside, start=start, stop=stop, rank=-1), rest
                )
        return rest

    def _take_back(self, frame: _Frame) -> None:
        """Undo the frame's placement, which led to nothing."""
        if frame.placement is None:
            return
        self._state.undo(frame.placement)
        if frame.placement.is_bare:  # Nothing rested on it: it was not in the way.
            frame.candidates.clear()
        frame.placement = None

    def _return_to(self, origin: int) -> None:
        while len(self._stack) > origin + 1:
            self._take_back(self._stack.pop())
