"""From lifetimes, as a trace and a layout problem have them, to a sequence of events.

Scope: ordering. What ends at a time is freed before what begins at it is allocated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planner.allocator.contracts import Event, Free, Malloc


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Storage `id` of `size_bytes`, there in the times `[born, freed)`; `freed` None: to the end.

    Raises:
        ValueError: when it would be freed before it is born, or as it is.
    """

    id: int
    size_bytes: int
    born: int
    freed: int | None = None
    stream: int = 0

    def __post_init__(self) -> None:
        if self.freed is not None and self.freed <= self.born:
            raise ValueError(f"freed is {self.freed}: takes more than born, which is {self.born}")


def events_of(lifetimes: Iterable[Lifetime]) -> list[Event]:
    """Allocations and frees in order of time, and in the order given where times are equal."""
    timed: list[tuple[int, bool, Event]] = []
    for life in lifetimes:
        timed.append((life.born, True, Malloc(life.id, life.size_bytes, life.stream)))
        if life.freed is not None:
            timed.append((life.freed, False, Free(life.id)))
    timed.sort(key=lambda item: item[:2])
    return [event for _, _, event in timed]
