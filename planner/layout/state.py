"""A partial layout that grows from the bottom: what is placed, and what follows from it.

Scope: placing one buffer and undoing it, with the inferences that show early that the capacity
can't be met. The order of placements is the search's. Sources: M. D. Moffitt, "MiniMalloc: A
Lightweight Memory Allocator for Hardware-Accelerated Machine Learning", ASPLOS 2023, and its public
code, for canonical placements, section inference and the floor of what is not placed yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.layout.sections import Ints
from planner.layout.topology import Neighbourhood, Topology

PLACED = np.int64(1 << 60)
"""The lowest offset of a buffer that is placed: above every other, so that minima pass it by."""


@dataclass(slots=True)
class Placement:
    """What placing a buffer changed, to be undone. `is_bare`: nothing that is left rests on it."""

    index: int
    offset: int
    lowest: Ints
    floors: Ints
    slacks: Ints
    is_bare: bool


class State:
    """Buffers are placed in the order of their offsets, so all that follows lies above what is
    placed and lives with it. In units (see `Sections`): `lowest` `[buffers]` is the least offset
    open to each, or PLACED; `floors` `[sections]` the least at which anything can still begin
    there; `slacks` `[sections]` what may still be wasted there, that is the capacity less the floor
    and the sizes to come.
    """

    def __init__(self, topology: Topology, capacity: int) -> None:
        sections = topology.sections
        self.topology = topology
        self.capacity = capacity
        self.offsets = np.zeros(sections.buffers, np.int64)
        self.lowest = np.zeros(sections.buffers, np.int64)
        self.floors = np.zeros(len(sections.totals), np.int64)
        self.slacks = capacity - sections.totals
        self.crossings = list(topology.crossings)
        self._sizes: list[int] = sections.sizes.tolist()
        self._first: list[int] = sections.first.tolist()
        self._last: list[int] = sections.last.tolist()
        self._alignments = None if sections.is_aligned else sections.alignments

    def place(self, index: int, start: int, stop: int) -> Placement | None:
        """Place a buffer at its lowest offset; None, and nothing changed, when the capacity can't
        be met with it there. The sections `[start, stop)` are to be filled from this offset up.
        """
        near = self.topology.neighbourhoods[index]
        offset = int(self.lowest[index])
        first, last = self._first[index], self._last[index]
        waste = offset - self.floors[first:last]
        if (self.slacks[first:last] < waste).any():
            return None
        placement = Placement(
            index,
            offset,
            self.lowest[near.others],
            self.floors[near.start : near.stop].copy(),
            self.slacks[near.start : near.stop].copy(),
            is_bare=False,
        )
        self.slacks[first:last] -= waste
        self.floors[first:last] = offset + self._sizes[index]
        self._push_up(placement, near)
        if not (self._lift(near) and self._holds(offset, start, stop)):
            self._restore(placement, near)
            return None
        self.offsets[index] = offset
        for section in range(first + 1, last):
            self.crossings[section] -= 1
        return placement

    def undo(self, placement: Placement) -> None:
        """Undo the last placement that is not undone."""
        index = placement.index
        self._restore(placement, self.topology.neighbourhoods[index])
        for section in range(self._first[index] + 1, self._last[index]):
            self.crossings[section] += 1

    def totals(self) -> Ints:
        """Return the sum of the sizes to come, `[sections]`."""
        return self.capacity - self.floors - self.slacks

    def cuts(self, index: int) -> list[int]:
        """Return the sections before which, with this buffer placed, nothing that is left to place
        lives on both sides; the two sides are then problems of their own.
        """
        inside = range(self._first[index] + 1, self._last[index])
        return [section for section in inside if not self.crossings[section]]

    def _push_up(self, placement: Placement, near: Neighbourhood) -> None:
        top = placement.offset + self._sizes[placement.index]
        pushed = np.maximum(placement.lowest, top)
        if self._alignments is not None:
            alignments = self._alignments[near.others]
            pushed = np.where(
                placement.lowest < top, -(-pushed // alignments) * alignments, placement.lowest
            )
        self.lowest[near.others] = pushed
        self.lowest[placement.index] = PLACED
        placement.is_bare = bool((pushed == placement.lowest).all())

    def _lift(self, near: Neighbourhood) -> bool:
        """Raise each floor to the lowest offset of what is left there: the rest is wasted."""
        slacks = self.slacks[near.start : near.stop]
        if len(near.edges):
            floors = self.floors[near.start : near.stop]
            lowest = np.minimum.reduceat(self.lowest[near.members], near.edges)
            lowest[lowest >= PLACED] = 0
            raised = np.maximum(lowest - floors, 0)
            floors += raised
            slacks -= raised
        return bool((slacks >= 0).all())

    def _holds(self, offset: int, start: int, stop: int) -> bool:
        """Whether all that is left in these sections still fits above `offset`."""
        below = np.maximum(offset - self.floors[start:stop], 0)
        return bool((self.slacks[start:stop] >= below).all())

    def _restore(self, placement: Placement, near: Neighbourhood) -> None:
        self.lowest[near.others] = placement.lowest
        self.lowest[placement.index] = placement.offset
        self.floors[near.start : near.stop] = placement.floors
        self.slacks[near.start : near.stop] = placement.slacks
