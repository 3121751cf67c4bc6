"""The variables of a swap program, in tiles and layers, and the GiB that they stand for.

Scope: one group of equal layers, and the rules for what may be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import pulp

from planner.contracts import Placement, Tier
from planner.swap.groups import Group

GIB = float(1 << 30)

PLACEMENT_OF_TIER = {
    Tier.DEVICE: Placement.KEEP,
    Tier.HOST: Placement.HOST,
    Tier.SSD: Placement.SSD,
}

WHOLE_TIER = {
    Placement.KEEP: Tier.DEVICE,
    Placement.HOST: Tier.HOST,
    Placement.SSD: Tier.SSD,
    Placement.RECOMPUTE: Tier.DEVICE,
}
"""Where x of a layer that runs whole is, by its tile's placement: what is stored of it has x in it,
and what recomputes it starts from x."""

Expression: TypeAlias = Any
"""An affine expression, a variable or a number of PuLP, which has no types."""

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What a plan may do. `placements` and `skeletal` are those allowed. `may_wait`: compute may
    wait for lanes. `held_layers`: the bytes in flight are at least so many times what a layer
    moves, so that a layer's end is not waited for (MEMO has two rounding buffers, one of which is
    computed with).
    """

    placements: frozenset[Placement] = frozenset(Placement)
    skeletal: frozenset[Tier] = frozenset(Tier)
    may_wait: bool = True
    held_layers: float = 1.0


@dataclass(slots=True)
class GroupVariables:
    """Tiles by placement, and layers by the tier of their x and of their o."""

    group: Group
    tiles: dict[Placement, pulp.LpVariable]
    x: dict[Tier, pulp.LpVariable]
    o: dict[Tier, pulp.LpVariable]

    def stored(self, *tiers: Tier) -> Expression:
        """GiB of tiles and of skeletal tensors in `tiers`."""
        return pulp.lpSum([*map(self.tiles_in, tiers), *map(self.skeletal_in, tiers)])

    def tiles_in(self, tier: Tier) -> Expression:
        """GiB of tiles in `tier`."""
        place = PLACEMENT_OF_TIER[tier]
        return self.group.cost.tile_bytes / GIB * self.tiles[place] if place in self.tiles else 0.0

    def skeletal_in(self, tier: Tier) -> Expression:
        """GiB of x and o in `tier`."""
        cost = self.group.cost
        if tier not in self.x:
            return 0.0
        return cost.x_bytes / GIB * self.x[tier] + cost.o_bytes / GIB * self.o[tier]

    @property
    def recompute_s(self) -> Expression:
        """Seconds of recomputation."""
        if Placement.RECOMPUTE not in self.tiles:
            return 0.0
        return self.group.cost.recompute_tile_s * self.tiles[Placement.RECOMPUTE]


def solved(variables: Mapping[K, pulp.LpVariable]) -> dict[K, int]:
    """The whole numbers that a solved program's variables have."""
    return {key: round(variable.varValue) for key, variable in variables.items()}
