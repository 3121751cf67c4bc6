"""Steps small enough to be worked out on paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.contracts import Lane, LayerSwap, Placement, Stored, SwapPlan, Tier
from planner.schedule.contracts import Schedule
from planner.schedule.simulation import simulate
from planner.swap.contracts import (
    LayerCost,
    PartCost,
    Rates,
    SegmentBytes,
    SegmentTimes,
    StepCost,
)

LAYER = LayerCost(
    name="layer",
    tiles=1,
    forward=SegmentTimes(pre_s=0.5, core_s=1.0, post_s=0.5),
    backward=SegmentTimes(post_s=1.0, core_s=2.0, pre_s=1.0),
    recompute=SegmentTimes(post_s=0.75, pre_s=0.25),
    x_bytes=0,
    o_bytes=0,
    tile_bytes=4,
)
ONE = Rates(
    d2h_bytes_per_s=1,
    h2d_bytes_per_s=1,
    ssd_write_bytes_per_s=1,
    ssd_read_bytes_per_s=1,
    peak_flops_per_s=10.0,
)


def _step(layers: int, layer: LayerCost = LAYER) -> StepCost:
    return StepCost(tile_tokens=1, layers=(layer,) * layers, model_flops=60.0)


def _run(
    cost: StepCost, placement: Placement, window: int, rates: Rates = ONE, tier: Tier = Tier.DEVICE
) -> Schedule:
    swap = LayerSwap(tiles={placement: cost.layers[0].tiles}, x=tier, o=tier)
    layers = (swap,) * len(cost.layers)
    return simulate(cost, rates, SwapPlan(tile_tokens=1, in_flight_bytes=window, layers=layers))


def test_kept_tiles_take_compute_alone() -> None:
    schedule = _run(_step(2), Placement.KEEP, 0)
    assert schedule.step_s == 12.0
    assert schedule.mfu == 60.0 / (12.0 * 10.0)
    assert not any(schedule.exposed_s.values())
    assert not any(schedule.moved_bytes.values())


def test_recomputed_tiles_add_their_time() -> None:
    schedule = _run(_step(2), Placement.RECOMPUTE, 0)
    assert (schedule.step_s, schedule.recompute_s) == (14.0, 2.0)


def test_nothing_in_flight_waits_for_every_copy() -> None:
    schedule = _run(_step(2), Placement.HOST, 0)
    # Forward 2 + 4 and 2 + 4; backward 4 + 4 and 4 + 4: each copy of 4 bytes is waited for.
    assert schedule.step_s == 28.0
    assert schedule.exposed_s[Lane.D2H] == 8.0
    assert schedule.exposed_s[Lane.H2D] == 8.0
    assert schedule.forwarded_bytes == 0


def test_what_is_in_flight_is_handed_back() -> None:
    schedule = _run(_step(2), Placement.HOST, 8)
    # Writes: 2 to 6, and from 6 on, 4 to 8 being backward of layer 2: its tile's memory can't go
    # before its copy has ended, at 10. Layer 1's is over by then.
    assert schedule.exposed_s == {**dict.fromkeys(Lane, 0.0), Lane.D2H: 2.0}
    assert schedule.step_s == 14.0
    assert schedule.forwarded_bytes == 8
    assert schedule.moved_bytes[Lane.H2D] == 0


def test_one_tile_in_flight_is_written_behind_and_brought_back_ahead() -> None:
    schedule = _run(_step(3), Placement.HOST, 4, replace(ONE, d2h_bytes_per_s=2))
    # Forward: saves at 2, 4, 6, each written in 2 while the next layer runs. Layer 3's is handed
    # back; backward of layer 3 runs from 6 to 10. Its load prefetches nothing, for it is still in
    # flight. Layer 2's is asked for at 10 (till 14), and with it layer 1's begins to come: 14 to
    # 18, when layer 2 is done.
    assert schedule.exposed_s == {**dict.fromkeys(Lane, 0.0), Lane.H2D: 4.0}
    assert schedule.step_s == 6.0 + 12.0 + 4.0
    assert schedule.forwarded_bytes == 4
    assert [s.start_s for s in schedule.spans if s.lane is Lane.H2D and not s.is_wait] == [10, 14]


def test_the_ssd_is_behind_the_host() -> None:
    rates = replace(ONE, d2h_bytes_per_s=4, h2d_bytes_per_s=4)
    schedule = _run(_step(2), Placement.SSD, 4, rates)
    # Layer 1: saved at 2, on the host at 3, on the disk from 3 to 7. Layer 2's save at 4 finds the
    # host full until 7; on the host at 8, its write (8 to 12) begins; backward begins at 7.
    assert schedule.exposed_s[Lane.SSD_WRITE] == 3.0
    # Layer 2's is handed back; backward of layer 2 runs from 7 to 11. Then it is forgotten: its
    # write has begun, and goes on, but its room on the host is free. Layer 1's is read after that
    # write on another lane: 11 to 15; to the device: 16; backward to 20.
    assert schedule.exposed_s[Lane.SSD_READ] == 4.0
    assert schedule.exposed_s[Lane.H2D] == 1.0
    assert schedule.step_s == 20.0
    assert schedule.moved_bytes[Lane.SSD_WRITE] == 8
    assert schedule.moved_bytes[Lane.SSD_READ] == 4


def test_a_write_that_nobody_waits_for_any_more_is_dropped() -> None:
    rates = replace(ONE, d2h_bytes_per_s=4, h2d_bytes_per_s=4, ssd_write_bytes_per_s=0.25)
    schedule = _run(_step(2), Placement.SSD, 8, rates)
    # Layer 1's write takes 3 to 19. Layer 2's is queued behind it when backward is done with it,
    # at 8, and dropped. Layer 1's bytes are still on the host, and the step ends at 12.
    assert schedule.step_s == 12.0
    assert schedule.moved_bytes[Lane.SSD_WRITE] == 4


def test_memory_over_time() -> None:
    layer = replace(
        LAYER,
        x_bytes=3,
        o_bytes=5,
        gradient_bytes=7,
        tile_pre_bytes=1,
        forward_live=SegmentBytes(pre_bytes=100, core_bytes=120, post_bytes=110),
        backward_live=SegmentBytes(pre_bytes=200, core_bytes=240, post_bytes=220),
    )
    cost = StepCost(
        tile_tokens=1,
        layers=(layer,),
        resident_bytes={Tier.DEVICE: 1000},
        head=PartCost(forward_s=1, forward_live_bytes=50, gradient_bytes=11),
    )
    schedule = _run(cost, Placement.KEEP, 0)
    assert schedule.memory[Tier.DEVICE] == (
        (0.0, 1000),
        (0.0, 1100),
        (0.5, 1120),
        (1.5, 1114),  # post, and its tile
        (2.0, 1062),  # x, o and the tile; the head
        (3.0, 1235),  # the head's gradient; x and o are counted with the layer
        (4.0, 1255),  # the core; the tile's graph is whole until pre has used it
        (6.0, 1215),
        (7.0, 1018),  # gradients
    )
    assert schedule.peak_bytes[Tier.DEVICE] == 1255


OF_CORE = replace(
    LAYER,
    o_bytes=5,
    o_core_bytes=4,
    tile_bytes=0,
    forward_live=SegmentBytes(pre_bytes=100, core_bytes=120, post_bytes=110),
    backward_live=SegmentBytes(pre_bytes=200, core_bytes=240, post_bytes=220),
)


def test_what_the_core_stored_on_the_device_is_there_until_its_backward() -> None:
    schedule = _run(_step(1, OF_CORE), Placement.RECOMPUTE, 0)
    assert schedule.memory[Tier.DEVICE] == (
        (0.0, 0),
        (0.0, 100),
        (0.5, 120),
        (1.5, 114),  # post, and what is for the core
        (2.0, 224),  # backward: o is counted with the layer
        (3.75, 240),  # and the rest with the core
        (5.75, 200),
        (7.0, 0),
    )


def test_what_the_core_stored_on_the_host_comes_back_for_it() -> None:
    schedule = _run(_step(1, OF_CORE), Placement.RECOMPUTE, 0, tier=Tier.HOST)
    # Nothing may be in flight: 4 bytes leave from 1.5 to 5.5 and the one of o to 6.5; post ends at
    # 7. o is back at 8, post's backward over at 9.75, the 4 bytes back at 13.75, and the core's and
    # pre's take 2 and 1.25.
    assert schedule.step_s == 17.0
    assert schedule.exposed_s[Lane.D2H] == 5.0
    assert schedule.exposed_s[Lane.H2D] == 5.0
    sizes = [size for _, size in schedule.memory[Tier.HOST]]
    assert sizes == [0, 4, 5, 4, 0]
    waiting = [size for at_s, size in schedule.memory[Tier.DEVICE] if 9.75 <= at_s < 13.75]
    assert waiting[-1] == 4  # on their way, and nothing else


def test_what_the_core_stored_comes_while_post_runs() -> None:
    schedule = _run(_step(2, OF_CORE), Placement.RECOMPUTE, 5, tier=Tier.HOST)
    # Layer 1's 4 and 1 are written till 5.5 and 6.5, which layer 2's wait for, and these, from 6.5
    # on, till 10.5 and 11.5. Backward of layer 2 begins at 7 and has both as they are, but forgets
    # o, at 8.75, only when it is written. Layer 1's o comes from then on, and the 4 bytes when
    # layer 1's backward begins, at 14.75, while post runs till 16.5.
    spans = [span for span in schedule.spans if span.lane is Lane.H2D and not span.is_wait]
    assert [(span.size_bytes, span.start_s) for span in spans] == [(1, 11.5), (4, 14.75)]
    assert schedule.exposed_s[Lane.H2D] == 18.75 - 16.5
    assert schedule.step_s == 18.75 + 2 + 1.25


def test_a_plan_that_stores_something_else_is_refused() -> None:
    cost = replace(_step(1), stored=Stored.AFTER)
    swap = SwapPlan(
        tile_tokens=1, in_flight_bytes=0, layers=(LayerSwap(tiles={Placement.KEEP: 1}),)
    )
    with pytest.raises(ValueError, match="plan has stored=before: takes after"):
        simulate(cost, ONE, swap)
    assert simulate(cost, ONE, replace(swap, stored=Stored.AFTER)).step_s == 6.0


def test_tiles_that_are_stored_have_live_bytes_of_their_own() -> None:
    live = SegmentBytes(
        pre_bytes=100,
        core_bytes=120,
        post_bytes=110,
        last_bytes=60,
        stored=SegmentBytes(pre_bytes=90, core_bytes=80, post_bytes=70, last_bytes=50),
    )
    layer = replace(LAYER, tiles=3, last_tile=0.5, forward_live=live, backward_live=live)
    cost = StepCost(tile_tokens=1, layers=(layer,))
    kept = _run(cost, Placement.KEEP, 0).memory[Tier.DEVICE]
    forward = [0, 100, 120, 70 + 4, 70 + 8, 50 + 10]
    backward = [70 + 10, 70 + 10, 50 + 10, 80 + 10, 90 + 10, 90 + 6, 90 + 2, 0]
    assert _distinct(kept) == _without_repeats([*forward, *backward])
    recomputed = _run(cost, Placement.RECOMPUTE, 0).memory[Tier.DEVICE]
    assert _distinct(recomputed) == [0, 100, 120, 110, 60, 110, 60, 120, 100, 0]


def _distinct(line: tuple[tuple[float, int], ...]) -> list[int]:
    """What is held, one after another, each value once as long as it stays."""
    return _without_repeats([size for _, size in line])


def _without_repeats(sizes: list[int]) -> list[int]:
    return [size for size, before in zip(sizes, [None, *sizes], strict=False) if size != before]


def test_what_is_handed_back_lives_until_its_tile_is_over() -> None:
    memory = _run(_step(1), Placement.HOST, 8).memory
    assert memory[Tier.DEVICE] == ((0.0, 0), (1.5, 4), (2.0, 4), (3.0, 0))


def test_the_host_holds_what_it_is_given_until_it_is_wanted() -> None:
    layer = replace(LAYER, x_bytes=2, o_bytes=2)
    schedule = _run(_step(1, layer), Placement.HOST, 0, tier=Tier.HOST)
    sizes = [size for _, size in schedule.memory[Tier.HOST]]
    assert sizes == [0, 2, 4, 8, 6, 4, 0]
    assert schedule.moved_bytes[Lane.D2H] == schedule.moved_bytes[Lane.H2D] == 8


@pytest.mark.parametrize(
    ("layers", "tiles", "says"),
    [
        (1, {Placement.KEEP: 1}, "plan has 1 layers: takes 2"),
        (2, {Placement.KEEP: 3}, "layer 0 has 3 tiles: takes 1"),
        (2, {Placement.SSD: 1}, "layer 0 uses the SSD: rates have none"),
    ],
)
def test_plans_for_other_steps_are_refused(
    layers: int, tiles: dict[Placement, int], says: str
) -> None:
    swaps = (LayerSwap(tiles=tiles),) * layers
    plan = SwapPlan(tile_tokens=1, in_flight_bytes=0, layers=swaps)
    with pytest.raises(ValueError, match=says):
        simulate(_step(2), Rates(d2h_bytes_per_s=1, h2d_bytes_per_s=1), plan)
