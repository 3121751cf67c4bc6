"""Parcels in the order in which backward wants them.

Scope: parcels of one layer call are a group; which follows which. What is done with them is
`transfers.py`'s.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from offload.budget import Budget
from offload.parcels import Parcel


@dataclass(slots=True)
class Groups:
    """The last group comes first, and within a group parcels by `Turn`, then as they came. The
    budget is told what groups take.
    """

    budget: Budget
    number: int = 0
    _parcels: dict[int, list[Parcel]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._parcels)

    def add(self, parcel: Parcel) -> None:
        """To the open group, whose number the parcel has."""
        insort(self._parcels.setdefault(parcel.group, []), parcel, key=lambda p: p.turn)
        self.budget.open_group_bytes += parcel.size_bytes

    def remove(self, parcel: Parcel) -> None:
        """Nobody wants it any more."""
        group = self._parcels[parcel.group]
        group.remove(parcel)
        if parcel.group == self.number:
            self.budget.open_group_bytes -= parcel.size_bytes
        if not group:
            del self._parcels[parcel.group]

    def close(self) -> list[Parcel]:
        """What comes next is another group; returns the parcels of this one."""
        parcels = self._parcels.get(self.number, [])
        if parcels:
            self.number += 1
            self.budget.open_group_bytes = 0
        return parcels

    def following(self, after: Parcel) -> Iterator[Parcel]:
        """What backward wants next."""
        own = self._parcels[after.group]
        yield from own[own.index(after) + 1 :]
        for number in sorted((n for n in self._parcels if n < after.group), reverse=True):
            yield from self._parcels[number]

    def __iter__(self) -> Iterator[Parcel]:
        return (parcel for group in self._parcels.values() for parcel in group)
