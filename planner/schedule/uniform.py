"""Swap plans in which all layers are alike, as `memo.wrap` takes them without a plan.

Scope: one placement for all tiles, one tier for all x and o.
"""

from __future__ import annotations

from planner.contracts import LayerSwap, Placement, SwapPlan, Tier
from planner.swap.contracts import LayerCost, StepCost
from planner.swap.variables import WHOLE_TIER

_ROUNDING_BUFFERS = 2
"""Of the largest layer's bytes: the runtime's budget of bytes in flight where none is given (MEMO,
arXiv 2407.12117, section 4.2)."""


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
        moved = (
            _moved_bytes(layer, placement, tier)
            for layer, tier in zip(cost.layers, tiers, strict=True)
        )
        in_flight_bytes = _ROUNDING_BUFFERS * max(moved)
    return SwapPlan(tile_tokens=cost.tile_tokens, in_flight_bytes=in_flight_bytes, layers=layers)


def _moved_bytes(layer: LayerCost, placement: Placement, skeletal: Tier) -> int:
    moves = placement in (Placement.HOST, Placement.SSD)
    tiles = layer.tiles - 1 + layer.last_tile if moves else 0
    return round(tiles * layer.tile_bytes) + layer.skeletal_bytes * (skeletal is not Tier.DEVICE)
