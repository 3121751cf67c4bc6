"""What is true of every schedule: bounds, sums, and what more of something does."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.contracts import Lane, LayerSwap, Placement, SwapPlan, Tier
from planner.schedule.simulation import simulate
from planner.swap.contracts import Rates, StepCost
from tests.planner.swap.cases import MIB, random_case

SEEDS = st.integers(0, 10**6)


def _case(seed: int) -> tuple[StepCost, Rates, SwapPlan]:
    """A random step, lanes about as fast as compute, and any plan."""
    rng = random.Random(seed)
    case = random_case(seed, layers=rng.randint(1, 5), tiles=rng.randint(1, 6), has_ssd=True)
    layers = tuple(_swap(rng, layer.tiles) for layer in case.cost.layers)
    window = rng.choice([0, 20 * MIB, 200 * MIB, 1000 * MIB, 10_000 * MIB])
    layer_costs = tuple(
        replace(layer, last_tile=rng.choice([1.0, 0.4])) for layer in case.cost.layers
    )
    cost = replace(case.cost, layers=layer_costs)
    return cost, case.rates, SwapPlan(tile_tokens=1, in_flight_bytes=window, layers=layers)


def _swap(rng: random.Random, tiles: int) -> LayerSwap:
    placements = [rng.choice(list(Placement)) for _ in range(tiles)]
    counts = {place: placements.count(place) for place in Placement}
    return LayerSwap(tiles=counts, x=rng.choice(list(Tier)), o=rng.choice(list(Tier)))


ANOMALY = 0.02


def _faster(rates: Rates, factor: float) -> Rates:
    names = ("d2h", "h2d", "ssd_write", "ssd_read")
    fields = [f"{name}_bytes_per_s" for name in names]
    return replace(rates, **{name: getattr(rates, name) * factor for name in fields})


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS)
def test_a_step_is_compute_and_waiting_and_no_shorter_than_any_lane(seed: int) -> None:
    cost, rates, plan = _case(seed)
    schedule = simulate(cost, rates, plan)
    recompute_s = sum(
        layer.recompute.total_s * _weight_of(layer.tiles, layer.last_tile, swap)
        for layer, swap in zip(cost.layers, plan.layers, strict=True)
    )
    assert schedule.recompute_s == pytest.approx(recompute_s)
    assert schedule.compute_s == pytest.approx(cost.compute_s + recompute_s)
    waited_s = sum(schedule.exposed_s.values())
    assert schedule.step_s == pytest.approx(schedule.compute_s + waited_s)
    for lane in (Lane.D2H, Lane.H2D, Lane.SSD_READ):  # a write to the SSD may outlast the step
        moved_s = schedule.moved_bytes[lane] / rates.of(lane)
        assert schedule.busy_s[lane] == pytest.approx(moved_s)
        assert schedule.step_s >= moved_s * (1 - 1e-9)


def _weight_of(tiles: int, last_tile: float, swap: LayerSwap) -> float:
    """The share of a layer that is recomputed, counted from the runtime's order of placements."""
    from offload import Placement as RuntimePlacement
    from offload.tiles import spread_placements

    shares = {RuntimePlacement(p.value): n / tiles for p, n in swap.tiles.items()}
    order = spread_placements(tiles, shares)
    weights = [1.0] * (tiles - 1) + [last_tile]
    chosen = [w for w, p in zip(weights, order, strict=True) if p == RuntimePlacement.RECOMPUTE]
    return sum(chosen) / sum(weights)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS)
def test_bytes_add_up(seed: int) -> None:
    cost, rates, plan = _case(seed)
    schedule = simulate(cost, rates, plan)
    out_bytes = schedule.moved_bytes[Lane.D2H]
    assert schedule.moved_bytes[Lane.H2D] + schedule.forwarded_bytes == out_bytes
    assert schedule.moved_bytes[Lane.SSD_WRITE] <= out_bytes
    assert schedule.moved_bytes[Lane.SSD_READ] <= schedule.moved_bytes[Lane.SSD_WRITE]
    assert schedule.in_flight_peak_bytes <= plan.in_flight_bytes
    gradients = sum(layer.gradient_bytes for layer in cost.layers) + cost.head.gradient_bytes
    for tier, line in schedule.memory.items():
        resident = cost.resident_bytes.get(tier, 0)
        left = gradients if tier is Tier.DEVICE else 0
        assert line[-1][1] == resident + left
        assert min(size for _, size in line) >= resident
        assert [at for at, _ in line] == sorted(at for at, _ in line)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS)
def test_a_lane_does_one_thing_at_a_time(seed: int) -> None:
    schedule = simulate(*_case(seed))
    for lane in Lane:
        spans = [s for s in schedule.spans if s.lane is lane and not s.is_wait]
        assert all(a.stop_s <= b.start_s for a, b in pairwise(spans))


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, factor=st.sampled_from([1.5, 4.0, 1e6]))
def test_faster_lanes_make_no_slower_step(seed: int, factor: float) -> None:
    """But for anomalies: what ends earlier may let another copy go first (R. L. Graham, "Bounds on
    Multiprocessing Timing Anomalies", 1969). Of 6,000 cases four have one, of 0.9% at most.
    """
    cost, rates, plan = _case(seed)
    slow, fast = simulate(cost, rates, plan), simulate(cost, _faster(rates, factor), plan)
    assert fast.step_s <= slow.step_s * (1 + ANOMALY)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_lanes_without_end_leave_compute(seed: int) -> None:
    cost, rates, plan = _case(seed)
    schedule = simulate(cost, _faster(rates, 1e12), plan)
    assert schedule.step_s == pytest.approx(schedule.compute_s, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, factor=st.floats(0.1, 10))
def test_time_has_no_unit(seed: int, factor: float) -> None:
    """All times longer and all rates lower by one factor: the same step, longer."""
    cost, rates, plan = _case(seed)
    slow = replace(
        cost,
        layers=tuple(
            replace(
                layer,
                **{
                    name: replace(
                        getattr(layer, name),
                        pre_s=getattr(layer, name).pre_s * factor,
                        core_s=getattr(layer, name).core_s * factor,
                        post_s=getattr(layer, name).post_s * factor,
                    )
                    for name in ("forward", "backward", "recompute")
                },
            )
            for layer in cost.layers
        ),
    )
    one, other = simulate(cost, rates, plan), simulate(slow, _faster(rates, 1 / factor), plan)
    assert other.step_s == pytest.approx(one.step_s * factor, rel=1e-6)
