"""In which order the search prefers buffers that may begin at one offset.

Scope: rankings of buffers. Depth-first search is either quick or hopeless, and which one depends on
the ranking, so there are several.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from planner.layout.sections import Ints, Sections

Floats = npt.NDArray[np.float64]

RANKINGS = ("TWA", "tWA", "TAW", "TW", "TCA", "WAT", "ATW")
"""Keys in order of weight, the largest first: T the largest total of a section that the buffer
lives in, of what is left to place; t the same of all buffers; W its duration, A duration times
size, C the sections it lives in. TWA, TAW and WAT are the defaults of MiniMalloc's public code;
the others were found here, each on one of its public instances.
"""

NOISE = (0.02, 0.1, 0.3)
"""Spreads of the random factor on every key; taken in turn."""


class Ranking:
    """Orders buffers by the keys of `name`, each times its row of `factors` `[keys, buffers]`."""

    def __init__(self, sections: Sections, name: str, factors: Floats | None = None) -> None:
        self._sections = sections
        keys = _keys(sections)
        rows = np.array([keys[letter] for letter in name])
        self._keys = rows if factors is None else rows * factors
        self._crowd_at = name.index("T") if "T" in name else None

    def order(self, indices: Ints, totals: Ints) -> Ints:
        """Return `indices` with the first to be placed first; `totals` `[sections]` are of what is
        left to place.
        """
        keys = self._keys[:, indices]
        if self._crowd_at is not None:
            keys[self._crowd_at] *= most_crowded(self._sections, indices, totals)
        return indices[np.lexsort(-keys[::-1])]


def plain_rankings(sections: Sections) -> list[Ranking]:
    """Return those of RANKINGS."""
    return [Ranking(sections, name) for name in RANKINGS]


def noisy_rankings(sections: Sections, random: np.random.Generator) -> Iterator[Ranking]:
    """Yield random changes of them for ever."""
    while True:
        for spread in NOISE:
            name = RANKINGS[random.integers(len(RANKINGS))]
            shape = len(name), sections.buffers
            yield Ranking(sections, name, random.uniform(1 - spread, 1 + spread, shape))


def most_crowded(sections: Sections, indices: Ints, totals: Ints) -> Ints:
    """The largest of `totals` `[sections]` where each of `indices` lives, in their order."""
    bounds = np.empty(2 * len(indices), np.int64)
    bounds[::2], bounds[1::2] = sections.first[indices], sections.last[indices]
    # A bound is an index, and the last one may be past the end.
    return np.maximum.reduceat(np.append(totals, 0), bounds)[::2]


def _keys(sections: Sections) -> dict[str, Floats]:
    duration = (sections.upper - sections.lower).astype(np.float64)
    crowd = most_crowded(sections, np.arange(sections.buffers), sections.totals)
    return {
        "T": np.ones(sections.buffers),  # Multiplied by the totals at the time of asking.
        "t": crowd.astype(np.float64),
        "W": duration,
        "A": duration * sections.sizes,
        "C": (sections.last - sections.first).astype(np.float64),
    }
