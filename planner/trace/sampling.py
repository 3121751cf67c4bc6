"""Which tiles of a sequence are traced.

Scope: arithmetic. The first tile allocates what all write into, the second finds it there; so does
every tile after, the last apart, which may be shorter. Three are traced, and the one in the middle
stands for all others.
"""

from __future__ import annotations

from dataclasses import dataclass

STANDS = 1
"""The place, among the traced tiles, of the one that stands for others."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Tiles to trace, by index, and for how many more the one at `STANDS` stands."""

    indices: tuple[int, ...]
    times: int = 0

    @classmethod
    def of(cls, count: int, *, everything: bool = False) -> Sample:
        """Of `count` tiles; all of them with `everything`."""
        if everything or count <= 3:
            return cls(tuple(range(count)))
        return cls((0, 1, count - 1), count - 3)
