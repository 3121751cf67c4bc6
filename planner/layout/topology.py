"""Who lives with whom: what a search reads at every step, worked out once.

Scope: index arrays derived from sections, nothing that changes during a search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.layout.sections import Ints, Sections

LIFT_MEMBERS = 20_000
"""Entries of a lift (about 20 us for numpy); a buffer whose neighbourhood has more goes without."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Of one buffer: `[start, stop)` are the sections that it or a buffer living with it touches.
    `members` are who lives in each of them, one section after the other, each from `edges` on;
    both are empty, and the range is the buffer's own, where they would be too many.
    """

    others: Ints
    start: int
    stop: int
    members: Ints
    edges: Ints


@dataclass(frozen=True, slots=True)
class Topology:
    sections: Sections
    neighbourhoods: tuple[Neighbourhood, ...]
    crossings: tuple[int, ...]
    """How many buffers live on both sides of the start of each section."""


def build_topology(sections: Sections) -> Topology:
    """Work out the neighbourhood of every buffer. Takes memory in proportion to `pairs`."""
    members, edges = _members(sections)
    neighbourhoods = tuple(
        _neighbourhood(sections, index, members, edges) for index in range(sections.buffers)
    )
    return Topology(sections, neighbourhoods, _crossings(sections))


def _members(sections: Sections) -> tuple[Ints, Ints]:
    """Return who lives in each section, joined, and where each section begins, `[sections + 1]`."""
    lists = [
        np.flatnonzero((sections.first <= section) & (sections.last > section))
        for section in range(len(sections.totals))
    ]
    edges = np.cumsum([0, *map(len, lists)])
    return np.concatenate(lists) if lists else np.empty(0, np.int64), edges


def _neighbourhood(sections: Sections, index: int, members: Ints, edges: Ints) -> Neighbourhood:
    others = sections.overlapping(index)
    first, last = int(sections.first[index]), int(sections.last[index])
    start = int(sections.first[others].min(initial=first))
    stop = int(sections.last[others].max(initial=last))
    if edges[stop] - edges[start] > LIFT_MEMBERS:
        empty = np.empty(0, np.int64)
        return Neighbourhood(others, first, last, empty, empty)
    inside = members[edges[start] : edges[stop]]
    return Neighbourhood(others, start, stop, inside, edges[start:stop] - edges[start])


def _crossings(sections: Sections) -> tuple[int, ...]:
    changes = np.zeros(len(sections.totals) + 1, np.int64)
    np.add.at(changes, sections.first + 1, 1)
    np.add.at(changes, sections.last, -1)
    return tuple(np.cumsum(changes)[:-1].tolist())
