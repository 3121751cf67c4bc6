"""How many bytes a piece of a step needs, and leaves.

Scope: adding pieces up.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes beyond those that live when a block begins: at most, and when it has ended (negative
    where it frees more than it leaves).
    """

    peak_bytes: int
    left_bytes: int

    def then(self, other: Need) -> Need:
        """Of one block after another."""
        peak = max(self.peak_bytes, self.left_bytes + other.peak_bytes)
        return Need(peak, self.left_bytes + other.left_bytes)
