"""Sums of live bytes, against adding up allocation by allocation and tile by tile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.trace.contracts import (
    Block,
    LayerTrace,
    PartTrace,
    Repeat,
    StepTrace,
)
from planner.trace.live import expanded_live_bytes, live_bytes, need_of
from planner.trace.need import Need
from planner.trace.peaks import layer_need, step_peak_bytes
from tests.planner.trace.blocks import allocation, block


@st.composite
def _blocks(draw: st.DrawFn) -> Block:
    count = draw(st.integers(1, 12))
    lives = draw(
        st.lists(
            st.tuples(
                st.integers(1, 9),
                st.integers(-1, count - 1),
                st.none() | st.integers(0, count),
            ),
            max_size=12,
        )
    )
    found = [
        allocation(size, born, freed)
        for size, born, freed in lives
        if freed is None or freed > born
    ]
    start = draw(st.integers(0, count - 1))
    stop = draw(st.integers(start + 1, count))
    return block(count, found, [Repeat(start, stop, draw(st.integers(0, 4)))])


@given(_blocks())
def test_live_bytes_are_the_sums_over_allocations(given_block: Block) -> None:
    during, before = live_bytes(given_block)
    start = sum(a.size_bytes for a in given_block.allocations if a.born < 0)
    for index, live in enumerate(during):
        there = [
            a.size_bytes
            for a in given_block.allocations
            if a.born <= index and (a.freed is None or a.freed > index)
        ]
        assert live == sum(there) - start
    left = [a.size_bytes for a in given_block.allocations if a.freed is None]
    assert before[-1] == sum(left) - start


@given(_blocks())
def test_a_need_is_that_of_all_tiles_one_after_another(given_block: Block) -> None:
    expanded = expanded_live_bytes(given_block)
    (repeat,) = given_block.repeats
    assert len(expanded) == len(given_block.operations) + repeat.times * (
        repeat.stop - repeat.start
    )
    assert need_of(given_block).peak_bytes == max(0, *expanded)


def test_tiles_that_stand_for_others_add_what_they_leave() -> None:
    # Each tile leaves 10 bytes, and needs 7 more while its second operation runs.
    tile = [allocation(10, 2, None), allocation(7, 3, 4)]
    found = block(6, [allocation(1, 0, None), *tile], [Repeat(2, 4, 3)])
    assert expanded_live_bytes(found) == [1, 1, 11, 18, 21, 28, 31, 38, 41, 48, 41, 41]
    assert need_of(found) == Need(48, 41)


def _part(forward: int, backward: int, left: int) -> PartTrace:
    """Needs of so many bytes, of which `left` are freed by backward."""
    first = [allocation(forward - left, 0, 1), allocation(left, 0, None)]
    second = [allocation(left, -1, 1), allocation(backward, 0, 1)]
    return PartTrace(block(1, first), block(1, second))


def _layer(tiles: int = 4) -> LayerTrace:
    return LayerTrace(
        name="layer",
        tokens=10 * tiles - 5,
        tile_tokens=10,
        tiles=tiles,
        x_bytes=1,
        o_bytes=1,
        stored_bytes=100,
        parameters=1,
        parameter_bytes=4,
        gradient_bytes=4,
        recomputed=_part(60, 80, 20),
        kept=_part(480, 30, 370),
    )


def _step(layers: int) -> StepTrace:
    return StepTrace(
        model="some",
        tokens=35,
        batch=1,
        dtype="float32",
        device="cpu",
        parameters=1,
        trainable=1,
        parameter_bytes=4,
        base_bytes=1000,
        embedding=_part(5, 5, 5),
        layers=(_layer(),),
        order=("layer",) * layers,
        head=_part(50, 10, 8),
    )


def test_a_steps_peak_is_the_largest_after_what_came_before() -> None:
    # The head's forward comes when 3 layers have left 20 bytes each and the embedding 5; the last
    # layer's backward needs 80 beside the same.
    assert step_peak_bytes(_step(3), [0, 0, 0]) == 1000 + 5 + 3 * 20 + 80
    assert step_peak_bytes(_step(3), [4, 0, 0]) == 1000 + 5 + 370 + 2 * 20 + 80
    assert step_peak_bytes(_step(1), [4]) == 1000 + 5 + 480


def test_some_stored_tiles_lie_between_none_and_all() -> None:
    layer = _layer()
    assert layer_need(layer, 0).forward == Need(60, 20)
    assert layer_need(layer, 4).forward == Need(480, 370)
    assert layer_need(layer, 2).forward == Need(60 + 420 // 2, 20 + 350 // 2)
    with pytest.raises(ValueError, match="stored_tiles is 5: takes 0 to 4"):
        layer_need(layer, 5)
    with pytest.raises(ValueError, match="stored_tiles has 2 numbers: takes 3"):
        step_peak_bytes(_step(3), [0, 0])
