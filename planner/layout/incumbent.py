"""What is known of a problem while it is being solved: the best layout, and the bound below it.

Scope: two figures that only move towards each other, and who moved them last.
"""

from __future__ import annotations

from planner.layout.sections import Ints, Sections


class Incumbent:
    """`lower` and `height` are in units; `offsets` `[buffers]` have `height`, and are None at
    first, with a height above that of everything stacked. `solver` found the offsets or closed the
    gap.
    """

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        self.lower = sections.bound
        self.height = int((sections.sizes + sections.alignments).sum()) + 1
        self.offsets: Ints | None = None
        self.solver = ""

    @property
    def is_optimal(self) -> bool:
        return self.height <= self.lower

    def offer(self, offsets: Ints, solver: str) -> None:
        """Keep these offsets if they are lower."""
        height = self._sections.height(offsets)
        if height < self.height:
            self.offsets, self.height, self.solver = offsets.copy(), height, solver

    def prove(self, lower: int, solver: str) -> None:
        """No layout is lower than `lower`."""
        if lower <= self.lower:
            return
        self.lower = min(lower, self.height)
        if self.is_optimal:
            self.solver = solver
