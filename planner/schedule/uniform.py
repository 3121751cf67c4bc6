"""Swap plans in which all layers are alike, as `memo.wrap` takes them without a plan.

Scope: one placement for all tiles, one tier for all x and o.
"""

from __future__ import annotations

from planner.contracts import LayerSwap, Placement, SwapPlan, Tier
from planner.swap import reading
from planner.swap.contracts import StepCost
from planner.swap.variables import WHOLE_TIER


def uniform_swap(
    cost: StepCost,
    placement: Placement,
    skeletal: Tier = Tier.DEVICE,
    *,
    in_flight_bytes: int | None = None,
) -> SwapPlan:
    """Every tile of every layer at `placement`, and every x and o in `skeletal`; of whole layers
    where their tile is.

    Args:
        in_flight_bytes: None: as much as the runtime takes by itself.
    """
    tiers = [WHOLE_TIER[placement] if layer.is_whole else skeletal for layer in cost.layers]
    layers = tuple(
        LayerSwap(tiles={placement: layer.tiles}, x=tier, o=tier)
        for layer, tier in zip(cost.layers, tiers, strict=True)
    )
    if in_flight_bytes is None:
        in_flight_bytes = reading.in_flight_bytes(cost, layers)
    return SwapPlan(
        tile_tokens=cost.tile_tokens,
        in_flight_bytes=in_flight_bytes,
        layers=layers,
        stored=cost.stored,
    )
