"""Plans in the runtime's words."""

from __future__ import annotations

from dataclasses import replace

import pytest

import offload
from memo.planning.applied import check_model, layer_placements
from offload import spread_placements
from planner.codec import PlanError
from planner.contracts import LayerSwap, Placement, Plan, SwapPlan, Tier
from planner.swap.groups import spread
from tests.planner.test_contracts import PLAN


def _with(*layers: LayerSwap) -> Plan:
    runs = (replace(PLAN.workload.layers[0], count=len(layers)),)
    swap = SwapPlan(tile_tokens=64, in_flight_bytes=0, layers=layers)
    return replace(PLAN, workload=replace(PLAN.workload, layers=runs), swap=swap)


def test_fractions_give_the_planned_tiles_in_the_simulated_order() -> None:
    counts = [
        {Placement.KEEP: 3, Placement.RECOMPUTE: 4, Placement.HOST: 6},
        {Placement.SSD: 1, Placement.RECOMPUTE: 12},
        {Placement.KEEP: 13},
    ]
    plan = _with(*(LayerSwap(tiles=tiles, x=Tier.HOST, o=Tier.HOST) for tiles in counts))
    for tiles, placed in zip(counts, layer_placements(plan), strict=True):
        order = spread_placements(13, placed.fractions)
        assert [p.value for p in order] == [p.value for p in spread(tiles)]
        assert placed.skeletal is offload.Tier.HOST


def test_x_and_o_apart_are_refused() -> None:
    plan = _with(LayerSwap(tiles={Placement.KEEP: 1}, x=Tier.HOST, o=Tier.DEVICE))
    with pytest.raises(PlanError, match="layer 0: x goes to the host and o to the device"):
        layer_placements(plan)


def test_another_model_is_refused_with_what_differs() -> None:
    work = PLAN.workload
    kinds = [run.layer_class for run in work.layers for _ in range(run.count)]
    same = {
        "parameters": work.parameters,
        "dtype": work.dtype,
        "sequence_parallel": work.sequence_parallel,
    }
    check_model(PLAN, kinds, **same)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"layers is .*parameters is 5"):
        check_model(PLAN, kinds[:-1], **{**same, "parameters": 5})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="sequence_parallel is 16, planned was"):
        check_model(PLAN, kinds, **{**same, "sequence_parallel": 16})  # type: ignore[arg-type]
