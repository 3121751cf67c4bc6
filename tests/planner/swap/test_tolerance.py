"""A plan that writes least to the SSD, within a tolerance of the shortest step, against all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from planner.contracts import LayerSwap, Tier
from planner.swap.solver import installed_solvers
from planner.swap.solving import Search, least_step_s, solve_swap
from planner.swap.variables import Rules
from tests.planner.swap.cases import Case, all_layers, lost_s, random_case, stored

TOLERANCE = 0.05
SEEDS = range(100, 116)


def _case(seed: int) -> Case:
    """Room to spare on the SSD, so that writing is a choice."""
    return random_case(seed, layers=2, tiles=3, has_ssd=True)


def _written(case: Case, plan: Sequence[LayerSwap]) -> int:
    pairs = zip(case.cost.layers, plan, strict=True)
    return sum(stored(cost, swap, Tier.SSD) for cost, swap in pairs)


def _every(case: Case) -> list[tuple[float, int]]:
    """Seconds lost, as the program counts them, and bytes written, of all plans that fit."""
    choices = [list(all_layers(cost, tuple(Tier))) for cost in case.cost.layers]
    plans = [(lost_s(case, plan), _written(case, plan)) for plan in itertools.product(*choices)]
    return [(lost, written) for lost, written in plans if lost is not None]


@pytest.mark.parametrize("solver", installed_solvers())
@pytest.mark.parametrize("seed", SEEDS)
def test_as_little_is_written_as_by_trying_all(seed: int, solver: str) -> None:
    case = _case(seed)
    rules = Rules(held_layers=case.held_layers)
    search = Search(gap=0.0, tolerance=TOLERANCE, solver=solver)
    found = solve_swap(case.cost, case.rates, case.budgets, rules, search)
    every = _every(case)
    assert (found is None) == (not every)
    if found is None:
        return
    compute_s, shortest_s = case.cost.compute_s, min(lost for lost, _ in every)
    allowed_s = shortest_s + TOLERANCE * (compute_s + shortest_s)
    lost = lost_s(case, found.plan.layers)
    assert lost is not None
    assert lost <= allowed_s + 1e-3 * compute_s  # moving is counted in one, and not in the other
    least = min(written for lost, written in every if lost <= allowed_s - 1e-3 * compute_s)
    assert _written(case, found.plan.layers) <= least + (1 << 20)


def test_some_of_these_steps_write_less_for_it() -> None:
    """Else the tolerance would not be tested."""
    less = 0
    for seed in SEEDS:
        case = _case(seed)
        rules = Rules(held_layers=case.held_layers)
        plans = [
            solve_swap(
                case.cost, case.rates, case.budgets, rules, Search(gap=0.0, tolerance=tolerance)
            )
            for tolerance in (0.0, TOLERANCE)
        ]
        if plans[0] is not None and plans[1] is not None:
            written = [_written(case, plan.plan.layers) for plan in plans if plan is not None]
            less += written[1] < written[0]
    assert less >= 3


def test_a_step_of_many_layers_stops_writing_where_that_saves_little() -> None:
    """As Llama 3.1 8B at a million tokens: the SSD saved under a hundredth of the step."""
    case = random_case(3, layers=1, tiles=64, has_ssd=True)
    layer = case.cost.layers[0]
    cheap = replace(layer, recompute=replace(layer.recompute, pre_s=0.01, post_s=0.01))
    cost = replace(case.cost, layers=(cheap,) * 40)
    most = sum(one.all_bytes for one in cost.layers)
    budgets = replace(
        case.budgets,
        device_bytes=most // 4,
        host_bytes=most // 4,
        ssd_bytes=most,
        in_flight_bytes=None,
    )
    found = {
        tolerance: solve_swap(
            cost, case.rates, budgets, Rules(), Search(tolerance=tolerance, time_limit_s=20)
        )
        for tolerance in (0.0, 0.01)
    }
    fast, sober = found[0.0], found[0.01]
    assert fast is not None
    assert sober is not None
    sizes = [
        sum(stored(c, s, Tier.SSD) for c, s in zip(cost.layers, one.plan.layers, strict=True))
        for one in (fast, sober)
    ]
    assert sizes[0] > 0
    assert sizes[1] == 0
    assert sober.step_s <= 1.012 * fast.step_s
    assert sober.gap <= 0.012


def test_nothing_is_lost_where_nothing_is_gained_by_it() -> None:
    """All fits on the device, and the tolerance would allow recomputation."""
    case = random_case(5, layers=4, tiles=6, has_ssd=True)
    rich = replace(case.budgets, device_bytes=1 << 40, in_flight_bytes=None)
    found = solve_swap(case.cost, case.rates, rich, Rules(), Search(tolerance=0.2))
    assert found is not None
    assert found.step_s == pytest.approx(case.cost.compute_s, rel=1e-9)
    assert found.written_bytes == 0


def test_no_plan_beats_the_bound() -> None:
    for seed in SEEDS:
        case = _case(seed)
        bound_s = least_step_s(case.cost, case.rates, case.budgets)
        every = _every(case)
        if not every:
            continue
        assert bound_s is not None
        assert bound_s <= case.cost.compute_s + min(lost for lost, _ in every) + 1e-9


@pytest.mark.parametrize("tolerance", [-0.01, 1.0, float("nan")])
def test_a_tolerance_is_a_share(tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"^tolerance is "):
        Search(tolerance=tolerance)
