"""What the runtime did, counted per layer class.

Scope: numbers only; `memo.report` shows them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from offload.contracts import Placement, Tier


@dataclass(slots=True)
class LayerCount:
    """Counts of one layer class since the last reset: layer calls that will have a backward, their
    tiles by placement, and the bytes of rebuildable tensors that were stored by tier.
    """

    calls: int = 0
    tiles: Counter[Placement] = field(default_factory=Counter)
    stored_bytes: Counter[Tier] = field(default_factory=Counter)
    skeletal_bytes: Counter[Tier] = field(default_factory=Counter)

    def reset(self) -> None:
        self.calls = 0
        self.tiles.clear()
        self.stored_bytes.clear()
        self.skeletal_bytes.clear()
