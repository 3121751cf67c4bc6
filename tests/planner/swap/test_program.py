"""The program against trying every plan, on steps small enough for that."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from planner.contracts import LayerSwap, Tier
from planner.swap.contracts import Budgets, StepCost
from planner.swap.groups import Group, group_layers
from planner.swap.program import Program
from planner.swap.solver import installed_solvers, solve
from planner.swap.solving import Search, missing_bytes, solve_swap
from planner.swap.variables import WHOLE_TIER, Rules
from tests.planner.swap.cases import (
    MIB,
    Case,
    all_layers,
    best_lost_s,
    device_live,
    lost_s,
    random_case,
    stored,
)

EXACT = Search(gap=0.0)
SOLVERS = installed_solvers()


_INCREMENT_S = 2e-5
"""CBC looks for solutions that are better by 1e-5 at least (its option `increment`)."""


def _objective(case: Case, solver: str) -> float | None:
    program = _program(case, Rules(held_layers=case.held_layers))
    return solve(program.problem, time_limit_s=60, solver=solver).objective


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(30))
def test_the_host_is_used_as_well_as_by_trying_all(seed: int, solver: str) -> None:
    case = random_case(seed, layers=3, tiles=2, has_ssd=False)
    best = best_lost_s(case)
    found = _objective(case, solver)
    assert found == (None if best is None else pytest.approx(best, abs=_INCREMENT_S))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(100, 112))
def test_the_ssd_is_used_as_well_as_by_trying_all(seed: int, solver: str) -> None:
    case = random_case(seed, layers=2, tiles=3, has_ssd=True)
    best = best_lost_s(case)
    found = _objective(case, solver)
    assert found == (None if best is None else pytest.approx(best, abs=_INCREMENT_S))


def _program(case: Case, rules: Rules) -> Program:
    groups = group_layers(case.cost.layers, 99)
    return Program(case.cost, case.rates, case.budgets, rules, groups)


def _fix(program: Program, plan: Sequence[LayerSwap]) -> None:
    for own, swap in zip(program.variables, plan, strict=True):
        wanted = [(v, swap.tiles.get(p, 0)) for p, v in own.tiles.items()]
        wanted += [(v, int(swap.x is t)) for t, v in own.x.items()]
        wanted += [(v, int(swap.o is t)) for t, v in own.o.items()]
        for variable, value in wanted:
            variable.lowBound = variable.upBound = value


def _slow(case: Case, rng: random.Random) -> Case:
    """Lanes so slow that compute waits for every one of them now and then, and budgets that leave
    room for little in flight, or for much."""
    names = ("d2h", "h2d", "ssd_write", "ssd_read")
    rates = {f"{n}_bytes_per_s": MIB * 10 ** rng.uniform(1.0, 3.5) for n in names}
    rich = Budgets(
        device_bytes=1 << 40,
        host_bytes=1 << 40,
        ssd_bytes=1 << 40,
        in_flight_bytes=rng.choice([0, 100, 400, 1000, 4000]) * MIB,
    )
    return replace(case, rates=replace(case.rates, **rates), budgets=rich)


@pytest.mark.parametrize("seed", range(400, 460))
def test_any_plan_costs_what_lanes_make_it_cost(seed: int) -> None:
    rng = random.Random(seed)
    case = _slow(random_case(seed, layers=5, tiles=4, has_ssd=True), rng)
    plan = [rng.choice(list(all_layers(layer, tuple(Tier)))) for layer in case.cost.layers]
    program = _program(case, Rules(held_layers=case.held_layers))
    _fix(program, plan)
    outcome = solve(program.problem, time_limit_s=60)
    assert outcome.objective == pytest.approx(lost_s(case, plan), rel=1e-5)


def _peaking_anywhere(cost: StepCost, rng: random.Random) -> StepCost:
    """One segment of one layer, in one direction, takes far more than all others."""
    index, direction = rng.randrange(len(cost.layers)), rng.choice(["forward", "backward"])
    segment = rng.choice(["pre_bytes", "core_bytes", "post_bytes"])
    live = replace(getattr(cost.layers[index], f"{direction}_live"), **{segment: 2000 * MIB})
    layer = replace(cost.layers[index], **{f"{direction}_live": live})
    return replace(cost, layers=(*cost.layers[:index], layer, *cost.layers[index + 1 :]))


@pytest.mark.parametrize("seed", range(500, 540))
@pytest.mark.parametrize("tier", Tier)
def test_any_plan_fits_from_its_own_size_on(seed: int, tier: Tier) -> None:
    rng = random.Random(seed)
    case = _slow(random_case(seed, layers=4, tiles=4, has_ssd=True), rng)
    case = replace(case, budgets=replace(case.budgets, in_flight_bytes=0))
    case = replace(case, cost=_peaking_anywhere(case.cost, rng))
    plan = [rng.choice(list(all_layers(layer, tuple(Tier)))) for layer in case.cost.layers]
    need = _need(case.cost, plan, tier)
    for more, fits in ((MIB // 10, True), (-MIB // 10, False)):
        budgets = replace(case.budgets, **{f"{tier}_bytes": max(0, need + more)})
        program = _program(replace(case, budgets=budgets), Rules(held_layers=0.0))
        _fix(program, plan)
        assert solve(program.problem, time_limit_s=60).is_solved == (fits or need < MIB)


def test_the_cases_are_of_every_kind() -> None:
    """Some fit, some don't; plans wait, recompute, and use every tier."""
    host = [best_lost_s(random_case(s, layers=3, tiles=2, has_ssd=False)) for s in range(30)]
    assert None in host
    assert len({lost for lost in host if lost is not None}) > 8


@pytest.mark.parametrize("seed", range(100, 106))
def test_a_plan_costs_what_the_program_says(seed: int) -> None:
    case = random_case(seed, layers=2, tiles=3, has_ssd=True)
    rules = Rules(held_layers=case.held_layers)
    solution = solve_swap(case.cost, case.rates, case.budgets, rules, EXACT)
    if solution is None:
        assert best_lost_s(case) is None
        return
    lost = lost_s(case, solution.plan.layers)
    assert lost == pytest.approx(solution.outcome.objective, rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_smallest_increase_is_what_the_thriftiest_plan_lacks(seed: int) -> None:
    case = random_case(seed, layers=3, tiles=2, has_ssd=False)
    poor = replace(
        case.budgets,
        device_bytes=case.budgets.device_bytes // 2,
        host_bytes=case.budgets.host_bytes // 2,
    )
    case = replace(case, budgets=poor, held_layers=0.0)
    missing = missing_bytes(case.cost, case.rates, case.budgets, Rules(held_layers=0.0), EXACT)
    for tier, found in missing.items():
        assert found == pytest.approx(_least_missing(case, tier), abs=2.3 * MIB)


def _least_missing(case: Case, tier: Tier) -> int | None:
    """By trying all plans with a budget of that tier without end."""
    name = f"{tier}_bytes"
    rich = replace(case, budgets=replace(case.budgets, **{name: 1 << 50}))
    choices = [list(all_layers(c, (Tier.DEVICE, Tier.HOST))) for c in case.cost.layers]
    plans = [plan for plan in itertools.product(*choices) if lost_s(rich, plan) is not None]
    needs = [_need(case.cost, plan, tier) for plan in plans]
    return max(0, min(needs) - getattr(case.budgets, name)) if needs else None


def _need(cost: StepCost, plan: Sequence[LayerSwap], tier: Tier) -> int:
    if tier is Tier.DEVICE:
        return device_live(cost, plan)
    resident = cost.resident_bytes.get(tier, 0)
    return resident + sum(stored(c, s, tier) for c, s in zip(cost.layers, plan, strict=True))


def test_equal_layers_are_grouped_and_decided_alike() -> None:
    layer = random_case(1, layers=1, tiles=3, has_ssd=False).cost.layers[0]
    other = replace(layer, name="other")
    groups = group_layers((layer,) * 7 + (other,) + (layer,) * 2, 4)
    assert groups == (
        Group(layer, 2),
        Group(layer, 2),
        Group(layer, 3),
        Group(other, 1),
        Group(layer, 2),
    )


def test_eighty_layers_take_seconds() -> None:
    case = random_case(3, layers=1, tiles=64, has_ssd=True)
    cost = replace(case.cost, layers=case.cost.layers * 80)
    most = sum(layer.all_bytes for layer in cost.layers)
    budgets = replace(case.budgets, device_bytes=most // 4, host_bytes=most // 4, ssd_bytes=most)
    solution = solve_swap(cost, case.rates, budgets, Rules(), Search(time_limit_s=20))
    assert solution is not None
    assert solution.gap < 1e-3
    assert solution.outcome.solve_s < 10


def _with_core(case: Case, rng: random.Random) -> Case:
    """Attention stores more for its own backward, and `post` is where most is live."""
    layers = []
    for layer in case.cost.layers:
        more = rng.randint(100, 900) * MIB
        layer = replace(layer, o_bytes=layer.o_bytes + more, o_core_bytes=more)
        for name in ("forward_live", "backward_live"):
            live = getattr(layer, name)
            layer = replace(layer, **{name: replace(live, post_bytes=live.post_bytes + 400 * MIB)})
        layers.append(layer)
    return replace(case, cost=replace(case.cost, layers=tuple(layers)))


@pytest.mark.parametrize("seed", range(600, 620))
def test_what_is_for_the_core_alone_takes_room_as_it_lies(seed: int) -> None:
    rng = random.Random(seed)
    case = _slow(random_case(seed, layers=4, tiles=4, has_ssd=True), rng)
    case = _with_core(replace(case, budgets=replace(case.budgets, in_flight_bytes=0)), rng)
    plan = [rng.choice(list(all_layers(layer, tuple(Tier)))) for layer in case.cost.layers]
    need = device_live(case.cost, plan)
    for more, fits in ((MIB // 10, True), (-MIB // 10, False)):
        budgets = replace(case.budgets, device_bytes=need + more)
        program = _program(replace(case, budgets=budgets), Rules(held_layers=0.0))
        _fix(program, plan)
        assert solve(program.problem, time_limit_s=60).is_solved == fits


def _with_whole(case: Case, *indices: int) -> Case:
    """Those layers cannot be cut: one tile, in which x is, and no o."""
    layers = [
        replace(layer, tiles=1, is_whole=True, o_bytes=0, tile_pre_bytes=0)
        if index in indices
        else layer
        for index, layer in enumerate(case.cost.layers)
    ]
    return replace(case, cost=replace(case.cost, layers=tuple(layers)))


@pytest.mark.parametrize("seed", range(200, 215))
def test_whole_layers_are_used_as_well_as_by_trying_all(seed: int) -> None:
    case = _with_whole(random_case(seed, layers=3, tiles=2, has_ssd=True), 0, 2)
    best = best_lost_s(case)
    found = _objective(case, SOLVERS[0])
    assert found == (None if best is None else pytest.approx(best, abs=_INCREMENT_S))


@pytest.mark.parametrize("search", [Search(), EXACT])
@pytest.mark.parametrize("seed", range(300, 312))
def test_x_of_a_whole_layer_is_where_its_tile_is(seed: int, search: Search) -> None:
    """Of groups of layers, too, whose tiles are dealt out to them."""
    case = _with_whole(random_case(seed, layers=2, tiles=5, has_ssd=True), 0)
    whole, tiled = case.cost.layers
    cost = replace(case.cost, layers=((whole,) * 7 + (tiled,)) * 2)
    most = sum(layer.all_bytes for layer in cost.layers)
    budgets = Budgets(device_bytes=most // 3 + (1 << 30), host_bytes=most // 5, ssd_bytes=most // 6)
    search = replace(search, max_groups=4, time_limit_s=10)
    solution = solve_swap(cost, case.rates, budgets, Rules(held_layers=0.0), search)
    assert solution is not None
    for layer, swap in zip(cost.layers, solution.plan.layers, strict=True):
        if layer.is_whole:
            (placement,) = swap.tiles
            assert swap.x is swap.o is WHOLE_TIER[placement]
