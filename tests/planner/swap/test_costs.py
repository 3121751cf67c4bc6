"""Costs of a trace that is small enough to be added up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.contracts import Tier
from planner.hardware.contracts import Disks, Efficiency, Hardware
from planner.swap.clock import slowness_of
from planner.swap.costs import Exchange, Extras, model_flops, step_cost
from planner.swap.shares import budgets_of, rates_of
from planner.trace.contracts import (
    Allocation,
    Block,
    Kind,
    LayerTrace,
    OperationCost,
    PartTrace,
    Pass,
    Repeat,
    Segment,
    StepTrace,
)

HARDWARE = Hardware(
    device="paper",
    gpus=4,
    device_bytes=1000,
    peak_flops_per_s={"bfloat16": 10.0},
    device_bytes_per_s=100.0,
    d2h_bytes_per_s=20.0,
    h2d_bytes_per_s=30.0,
    link_bytes_per_s=50.0,
    host_bytes=4004,
    disks=Disks(count=2, size_bytes=600, write_bytes_per_s=8.0, read_bytes_per_s=6.0),
    efficiency=Efficiency(matmul=0.5, attention_forward=0.8, attention_backward=0.4, link=0.5),
)


def _op(index: int, flops: int, size: int, segment: Segment, direction: Pass) -> OperationCost:
    return OperationCost(index, f"op{index}", flops, size, segment, direction)


FORWARD = Block(
    operations=(
        _op(0, 5, 10, Segment.PRE, Pass.FORWARD),  # 1 s
        _op(1, 16, 10, Segment.CORE, Pass.FORWARD),  # 2 s
        _op(2, 10, 10, Segment.POST, Pass.FORWARD),  # 2 s, three times
        _op(3, 0, 50, Segment.POST, Pass.FORWARD),  # 0.5 s of memory
    ),
    allocations=(
        Allocation(1, 40, 0, 2, Segment.PRE, Kind.TRANSIENT),
        Allocation(2, 7, 1, None, Segment.CORE, Kind.SKELETAL),
        Allocation(3, 6, 2, None, Segment.POST, Kind.OUTPUT),  # a tile's part, 6 bytes each
        Allocation(4, 30, 2, 3, Segment.POST, Kind.TRANSIENT),
    ),
    repeats=(Repeat(2, 3, 2),),
)
BACKWARD = Block(
    operations=(
        _op(0, 10, 0, Segment.POST, Pass.RECOMPUTE),  # 2 s
        _op(1, 20, 0, Segment.POST, Pass.BACKWARD),  # 4 s
        _op(2, 40, 0, Segment.CORE, Pass.BACKWARD),  # 10 s
        _op(3, 5, 0, Segment.PRE, Pass.RECOMPUTE),  # 1 s
        _op(4, 10, 0, Segment.PRE, Pass.BACKWARD),  # 2 s
    ),
    allocations=(
        Allocation(5, 100, 0, 2, Segment.POST, Kind.TRANSIENT),
        Allocation(6, 9, 1, None, Segment.POST, Kind.GRADIENT),
        Allocation(7, 70, 2, 3, Segment.CORE, Kind.TRANSIENT),
    ),
)
PART = PartTrace(FORWARD, BACKWARD)
LAYER = LayerTrace(
    name="layer",
    tokens=90,
    tile_tokens=40,
    tiles=3,
    x_bytes=8,
    o_bytes=7,
    stored_bytes=25,
    parameters=10,
    parameter_bytes=20,
    gradient_bytes=9,
    recomputed=PART,
    kept=PART,
)
EMPTY = PartTrace(Block((), ()), Block((), ()))
TRACE = StepTrace(
    model="paper",
    tokens=90,
    batch=1,
    dtype="bfloat16",
    device="cuda",
    parameters=100,
    trainable=100,
    parameter_bytes=200,
    base_bytes=333,
    embedding=EMPTY,
    layers=(LAYER,),
    order=("layer", "layer"),
    head=EMPTY,
)


def test_segments_take_the_longer_of_compute_and_memory() -> None:
    layer = step_cost(TRACE, HARDWARE).layers[0]
    forward, backward, again = layer.forward, layer.backward, layer.recompute
    assert (forward.pre_s, forward.core_s, forward.post_s) == pytest.approx((1.0, 2.0, 6.5))
    assert (backward.post_s, backward.core_s, backward.pre_s) == pytest.approx((4.0, 10.0, 2.0))
    assert (again.post_s, again.pre_s) == pytest.approx((2.0, 1.0))


def test_live_bytes_count_x_o_and_all_tiles() -> None:
    layer = step_cost(TRACE, HARDWARE).layers[0]
    forward, backward = layer.forward_live, layer.backward_live
    assert forward.pre_bytes == 8 + 40
    assert forward.core_bytes == 8 + 40 + 7
    # While the last of three tiles runs, each has left 6 bytes; the core left 7.
    assert forward.post_bytes == 8 + 7 + 3 * 6 + 30
    start = 8 + 7 + 8  # x, o, and the gradient of y
    assert backward.post_bytes == start + 100 + 9
    assert backward.core_bytes == start + 9 + 70
    assert backward.pre_bytes == start + 9


def test_what_is_stored_for_the_core_alone_is_live_in_it_alone() -> None:
    """4 of the 7 bytes that the core leaves are for its backward, which lets go of them."""
    freed = Allocation(2, 4, -1, 3, Segment.CORE, Kind.EXCHANGED)
    backward = replace(BACKWARD, allocations=(*BACKWARD.allocations, freed))
    part = PartTrace(FORWARD, backward)
    layer = replace(LAYER, o_core_bytes=4, recomputed=part, kept=part)
    (cost, _) = step_cost(replace(TRACE, layers=(layer,)), HARDWARE).layers
    assert (cost.o_bytes, cost.o_core_bytes) == (7, 4)
    assert cost.forward_live.core_bytes == 8 + 40 + 7
    assert cost.forward_live.post_bytes == 8 + (7 - 4) + 3 * 6 + 30
    start = 8 + 7 + 8
    assert cost.backward_live.post_bytes == start - 4 + 100 + 9
    assert cost.backward_live.core_bytes == start + 9 + 70
    assert cost.backward_live.pre_bytes == start - 4 + 9


def test_gradients_that_are_sharded_are_kept_in_part() -> None:
    cost = step_cost(TRACE, HARDWARE, Extras(gradient_share=1 / 3))
    assert cost.layers[0].gradient_bytes == 3


def test_a_layer_keeps_its_sizes() -> None:
    cost = step_cost(TRACE, HARDWARE)
    layer = cost.layers[1]
    assert (layer.tiles, layer.tile_bytes, layer.gradient_bytes) == (3, 25, 9)
    assert layer.last_tile == 10 / 40
    assert cost.resident_bytes == {Tier.DEVICE: 333}
    assert cost.tile_tokens == 40


def test_an_exchange_takes_the_cores_time() -> None:
    exchange = Exchange(forward_bytes=100, backward_bytes=200)
    cost = step_cost(TRACE, HARDWARE, Extras(exchange={"layer": exchange}))
    assert cost.layers[0].forward.core_s == pytest.approx(2.0 + 4.0)
    assert cost.layers[0].backward.core_s == pytest.approx(10.0 + 8.0)
    alone = replace(HARDWARE, link_bytes_per_s=None)
    with pytest.raises(ValueError, match="link_bytes_per_s is None"):
        step_cost(TRACE, alone, Extras(exchange={"layer": exchange}))


def test_what_is_sent_beside_the_core_takes_what_is_longer_than_it() -> None:
    exchange = Exchange(
        forward_bytes=100, forward_beside_bytes=49, backward_beside_bytes=300, backward_bytes=50
    )
    cost = step_cost(TRACE, HARDWARE, Extras(exchange={"layer": exchange}))
    assert cost.layers[0].forward.core_s == pytest.approx(2.0 + 4.0)
    assert cost.layers[0].backward.core_s == pytest.approx(12.0 + 2.0)
    with pytest.raises(ValueError, match="forward_beside_bytes is -1"):
        Exchange(forward_beside_bytes=-1)


def test_model_flops_leave_out_what_is_run_twice() -> None:
    # Per layer: three times a core of 16, and three times a whole of 10 for each of three tiles;
    # `pre` is run again within it.
    assert model_flops(TRACE) == 2 * (3 * 16 + 3 * 30)
    frozen = replace(TRACE, trainable=0)
    assert model_flops(frozen) == 2 * (3 * 16 + 2 * 30)


def test_a_phase_takes_as_long_as_it_was_measured() -> None:
    measured = {
        ("layer", Segment.PRE, Pass.FORWARD): 0.25,
        ("layer", Segment.CORE, Pass.BACKWARD): 70.0,
        ("layer", Segment.POST, Pass.RECOMPUTE): 3.0,
        ("head", Segment.HEAD, Pass.FORWARD): 5.0,  # nothing of it was traced
    }
    slowness = slowness_of(TRACE, measured, HARDWARE)
    assert slowness == {
        ("layer", Segment.PRE, Pass.FORWARD): 0.25,
        ("layer", Segment.CORE, Pass.BACKWARD): 7.0,
        ("layer", Segment.POST, Pass.RECOMPUTE): 1.5,
    }
    layer = step_cost(TRACE, HARDWARE, Extras(slowness=slowness)).layers[0]
    forward, backward, again = layer.forward, layer.backward, layer.recompute
    assert (forward.pre_s, forward.core_s, forward.post_s) == pytest.approx((0.25, 2.0, 6.5))
    assert (backward.post_s, backward.core_s, backward.pre_s) == pytest.approx((4.0, 70.0, 2.0))
    assert (again.post_s, again.pre_s) == pytest.approx((3.0, 1.0))


def test_what_goes_before_the_loss_is_live_in_forward_alone() -> None:
    head = Block(
        operations=(_op(0, 0, 0, Segment.HEAD, Pass.FORWARD),) * 2,
        allocations=(
            Allocation(8, 1000, -1, 1, Segment.EMBEDDING, Kind.INPUT),  # made before the layers
            Allocation(9, 300, 1, 2, Segment.HEAD, Kind.TRANSIENT),
        ),
    )
    before = step_cost(TRACE, HARDWARE)
    cost = step_cost(replace(TRACE, head=PartTrace(head, Block((), ()))), HARDWARE)
    for segment in ("pre_bytes", "core_bytes", "post_bytes"):
        more = getattr(cost.layers[0].forward_live, segment)
        assert more == getattr(before.layers[0].forward_live, segment) + 1000
    assert cost.layers[0].backward_live == before.layers[0].backward_live
    assert cost.head.forward_live_bytes == 8 + 1000
    assert cost.head.backward_live_bytes == 8


def test_a_node_is_shared_by_its_ranks() -> None:
    rates = rates_of(HARDWARE, "bfloat16")
    assert (rates.d2h_bytes_per_s, rates.h2d_bytes_per_s) == (10.0, 15.0)
    assert (rates.ssd_write_bytes_per_s, rates.ssd_read_bytes_per_s) == (4.0, 3.0)
    budgets = budgets_of(HARDWARE)
    assert (budgets.device_bytes, budgets.host_bytes, budgets.ssd_bytes) == (1000, 1001, 300)
    assert budgets_of(HARDWARE, sharing=1).host_bytes == 4004


def test_a_node_without_disks_has_no_ssd() -> None:
    hardware = replace(HARDWARE, disks=None)
    assert not rates_of(hardware, "bfloat16").has_ssd
    assert budgets_of(hardware).ssd_bytes == 0


def test_a_dtype_without_a_rate_is_named() -> None:
    with pytest.raises(ValueError, match="dtype is 'float32'"):
        rates_of(HARDWARE, "float32")
