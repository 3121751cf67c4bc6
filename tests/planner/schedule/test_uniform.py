"""Plans in which all layers are alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.contracts import LayerSwap, Placement, Tier
from planner.schedule.uniform import uniform_swap
from planner.swap.contracts import LayerCost, SegmentTimes, StepCost

SMALL = LayerCost(
    name="small",
    tiles=3,
    last_tile=0.25,
    forward=SegmentTimes(),
    backward=SegmentTimes(),
    recompute=SegmentTimes(),
    x_bytes=7,
    o_bytes=5,
    tile_bytes=40,
)
LARGE = replace(SMALL, name="large", x_bytes=17)
WHOLE = replace(SMALL, name="whole", tiles=1, last_tile=1.0, o_bytes=0, is_whole=True)
STEP = StepCost(tile_tokens=16, layers=(SMALL, LARGE, WHOLE))


@pytest.mark.parametrize(
    ("placement", "skeletal", "in_flight_bytes"),
    [
        (Placement.KEEP, Tier.DEVICE, 0),
        (Placement.RECOMPUTE, Tier.DEVICE, 0),
        (Placement.RECOMPUTE, Tier.HOST, 2 * (17 + 5)),
        (Placement.HOST, Tier.DEVICE, 2 * 90),  # two full tiles, and a quarter of one
        (Placement.SSD, Tier.SSD, 2 * (90 + 17 + 5)),
    ],
)
def test_the_largest_layer_tells_what_may_be_in_flight(
    placement: Placement, skeletal: Tier, in_flight_bytes: int
) -> None:
    plan = uniform_swap(STEP, placement, skeletal)
    assert plan.in_flight_bytes == in_flight_bytes
    assert plan.tile_tokens == 16
    assert plan.layers[:2] == (LayerSwap(tiles={placement: 3}, x=skeletal, o=skeletal),) * 2


@pytest.mark.parametrize("skeletal", Tier)
@pytest.mark.parametrize(
    ("placement", "tier"),
    [
        (Placement.KEEP, Tier.DEVICE),
        (Placement.RECOMPUTE, Tier.DEVICE),
        (Placement.HOST, Tier.HOST),
        (Placement.SSD, Tier.SSD),
    ],
)
def test_x_of_a_whole_layer_is_where_its_tile_is(
    placement: Placement, tier: Tier, skeletal: Tier
) -> None:
    *_, whole = uniform_swap(STEP, placement, skeletal).layers
    assert whole == LayerSwap(tiles={placement: 1}, x=tier, o=tier)
    alone = replace(STEP, layers=(WHOLE,))
    moved = 2 * (40 + 7) if tier is not Tier.DEVICE else 0
    assert uniform_swap(alone, placement, skeletal).in_flight_bytes == moved


def test_what_may_be_in_flight_can_be_said() -> None:
    assert uniform_swap(STEP, Placement.HOST, in_flight_bytes=11).in_flight_bytes == 11
