"""MEMO's rule: its formula, and the program's equality with it where it applies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.contracts import Placement, Tier
from planner.swap.contracts import (
    Budgets,
    LayerCost,
    Rates,
    SegmentBytes,
    SegmentTimes,
    StepCost,
)
from planner.swap.memo_rule import memo_alpha
from planner.swap.solver import SolverError
from planner.swap.solving import Search, solve_swap
from planner.swap.variables import Rules

MIB = 1 << 20
AS_MEMO = Rules(
    placements=frozenset({Placement.HOST, Placement.RECOMPUTE}),
    skeletal=frozenset({Tier.HOST}),
    may_wait=False,
)
"""One tier, no waiting; with nothing in flight, transfers hide behind their own layer."""


def _uniform(layers: int, tiles: int, tile_bytes: int, layer_s: float) -> StepCost:
    layer = LayerCost(
        name="layer",
        tiles=tiles,
        forward=SegmentTimes(core_s=layer_s),
        backward=SegmentTimes(core_s=2 * layer_s),
        recompute=SegmentTimes(post_s=layer_s / 3),
        x_bytes=64 * MIB,
        o_bytes=65 * MIB,
        tile_bytes=tile_bytes,
        forward_live=SegmentBytes(core_bytes=300 * MIB),
    )
    return StepCost(tile_tokens=1024, layers=(layer,) * layers)


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 12),
    tiles=st.integers(1, 40),
    tile_mib=st.integers(1, 50),
    layer_s=st.floats(0.05, 2.0),
    rate=st.floats(2e8, 5e9),
    host_mib=st.integers(500, 30_000),
    max_groups=st.sampled_from([1, 3, 12]),
)
def test_the_program_contains_memos_rule(
    layers: int,
    tiles: int,
    tile_mib: int,
    layer_s: float,
    rate: float,
    host_mib: int,
    max_groups: int,
) -> None:
    cost = _uniform(layers, tiles, tile_mib * MIB, layer_s)
    alpha = memo_alpha(
        input_bytes=64 * MIB,
        attention_bytes=65 * MIB,
        other_bytes=tiles * tile_mib * MIB,
        layer_s=layer_s,
        d2h_bytes_per_s=rate,
        layers=layers,
        host_bytes=host_mib * MIB,
        resident_layers=0,
    )
    solution = solve_swap(
        cost,
        Rates(d2h_bytes_per_s=rate, h2d_bytes_per_s=rate),
        Budgets(device_bytes=400 * MIB, host_bytes=host_mib * MIB, in_flight_bytes=0),
        AS_MEMO,
        Search(gap=0.0, max_groups=max_groups),
    )
    if alpha is None:
        assert solution is None
        return
    assume(abs(alpha * tiles - round(alpha * tiles)) > 1e-4)  # not between two answers
    assert solution is not None
    swapped = [layer.tiles.get(Placement.HOST, 0) for layer in solution.plan.layers]
    by_lane = (layer_s * rate / MIB - 129) / tile_mib
    if alpha == 1.0 or by_lane <= (host_mib / layers - 129) / tile_mib:
        # The lane binds: every layer for itself. Groups deal out their sum.
        assert sum(swapped) <= layers * alpha * tiles < sum(swapped) + layers
        if max_groups >= layers:
            assert set(swapped) == {int(alpha * tiles)}
    else:  # the host binds: the rule rounds down once a layer, the program once in all
        assert sum(swapped) == int(layers * alpha * tiles + 1e-9)


@pytest.mark.parametrize(
    ("layer_s", "rate", "host_bytes", "alpha"),
    [
        (2.0, 5.0, 1e9, 0.5),  # 10 bytes a layer, 2 of them skeletal
        (2.0, 50.0, 48.0, 0.25),  # 48 bytes over the 8 layers that are not in the buffers
        (9.0, 9.0, 1e9, 1.0),
        (1.0, 1.9, 1e9, None),
    ],
)
def test_alpha_by_hand(layer_s: float, rate: float, host_bytes: float, alpha: float | None) -> None:
    found = memo_alpha(
        input_bytes=1,
        attention_bytes=1,
        other_bytes=16,
        layers=10,
        layer_s=layer_s,
        d2h_bytes_per_s=rate,
        host_bytes=host_bytes,
    )
    assert found == alpha


def test_two_layers_need_no_host() -> None:
    alpha = memo_alpha(
        input_bytes=1,
        attention_bytes=1,
        other_bytes=16,
        layer_s=2,
        d2h_bytes_per_s=9,
        layers=2,
        host_bytes=0,
    )
    assert alpha == 1.0


@pytest.mark.parametrize("name", ["input_bytes", "layer_s", "host_bytes", "d2h_bytes_per_s"])
def test_bad_figures_are_named(name: str) -> None:
    rule = dict.fromkeys(
        ["input_bytes", "attention_bytes", "other_bytes", "layer_s", "host_bytes"], 1.0
    )
    figures = {**rule, "d2h_bytes_per_s": 1.0, name: -1.0}
    with pytest.raises(ValueError, match=f"^{name} is -1.0"):
        memo_alpha(**figures, layers=3)  # type: ignore[arg-type]


def test_a_larger_window_swaps_no_less_than_the_rule() -> None:
    cost, rates = _uniform(6, 20, 10 * MIB, 0.5), Rates(d2h_bytes_per_s=5e8, h2d_bytes_per_s=5e8)
    swapped = []
    for window in (0, 100 * MIB, 400 * MIB):
        budgets = Budgets(device_bytes=800 * MIB, host_bytes=10_000 * MIB, in_flight_bytes=window)
        solution = solve_swap(cost, rates, budgets, AS_MEMO, Search(gap=1e-3))
        assert solution is not None
        swapped.append(sum(x.tiles.get(Placement.HOST, 0) for x in solution.plan.layers))
    assert swapped == sorted(swapped)
    assert swapped[0] < swapped[-1]


def test_a_solver_that_is_not_there_is_named() -> None:
    cost, rates = _uniform(1, 2, MIB, 1.0), Rates(d2h_bytes_per_s=1e9, h2d_bytes_per_s=1e9)
    with pytest.raises(SolverError, match=r"solver is 'OTHER': installed here are .*CBC"):
        solve_swap(cost, rates, Budgets(device_bytes=MIB), None, Search(solver="OTHER"))


def test_nothing_fits_where_the_skeleton_does_not() -> None:
    cost = _uniform(3, 2, MIB, 1.0)
    rates = Rates(d2h_bytes_per_s=1e9, h2d_bytes_per_s=1e9)
    budgets = Budgets(device_bytes=400 * MIB, host_bytes=100 * MIB, in_flight_bytes=0)
    assert solve_swap(cost, rates, budgets, AS_MEMO) is None
    assert solve_swap(cost, rates, replace(budgets, host_bytes=390 * MIB), AS_MEMO) is not None
