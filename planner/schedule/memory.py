"""Bytes of each tier over time.

Scope: changes go in, in any order of time; lines come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from planner.contracts import Tier

Change = tuple[float, int]


@dataclass(slots=True)
class Memory:
    """Changes of what is held, in bytes, by tier."""

    resident_bytes: Mapping[Tier, int]
    _changes: dict[Tier, list[Change]] = field(
        init=False, default_factory=lambda: {tier: [] for tier in Tier}
    )

    def take(self, tier: Tier, at_s: float, size_bytes: int) -> None:
        """From `at_s` on, so many more are held."""
        if size_bytes:
            self._changes[tier].append((at_s, size_bytes))

    def give_back(self, tier: Tier, at_s: float, size_bytes: int) -> None:
        """From `at_s` on, so many fewer are held."""
        self.take(tier, at_s, -size_bytes)

    def lines(self) -> dict[Tier, tuple[Change, ...]]:
        """What is held from each time on. Of changes at one time what is given back comes first."""
        return {tier: self._line(tier) for tier in Tier}

    def _line(self, tier: Tier) -> tuple[Change, ...]:
        held = self.resident_bytes.get(tier, 0)
        line = [(0.0, held)]
        for at_s, changes in groupby(sorted(self._changes[tier]), key=lambda change: change[0]):
            held += sum(size for _, size in changes)
            line.append((at_s, held))
        return tuple(line)
