"""From costs, rates and budgets to a swap plan, or to what is missing.

Scope: building the program, having it solved, and reading a plan out of it. What solvers see is per
group of equal layers; the plan is per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pulp

from planner.contracts import LayerSwap, Placement, SwapPlan, Tier
from planner.swap.contracts import Budgets, LayerCost, Rates, StepCost
from planner.swap.device import live_moments
from planner.swap.groups import deal, group_layers
from planner.swap.program import Program
from planner.swap.rounding import round_down
from planner.swap.solver import Outcome, SolverError, Status, solve
from planner.swap.variables import GIB, GroupVariables, Rules, solved

_ROUNDING_BUFFERS = 2
"""The most that is worth having in flight, in layers (MEMO, arXiv 2407.12117, section 4.2: one is
copied while compute fills the other)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How hard to look: seconds for each solve, the gap in step time at which to stop, relatively,
    groups of layers at most (about), and the solver by PuLP's name (None: the best installed).
    """

    time_limit_s: float = 5.0
    gap: float = 1e-3
    max_groups: int = 16
    solver: str | None = None


@dataclass(frozen=True, slots=True)
class SwapSolution:
    """A plan that keeps the program's budgets. `gap`: how much shorter, relatively, a step may be
    at most; `step_s` as the program sees it.
    """

    plan: SwapPlan
    outcome: Outcome
    step_s: float
    gap: float


def solve_swap(
    cost: StepCost,
    rates: Rates,
    budgets: Budgets,
    rules: Rules | None = None,
    search: Search | None = None,
) -> SwapSolution | None:
    """The plan with the shortest step that was found in time; None when none fits.

    The relaxed program gives the bound, and a plan by rounding; only if that is not close enough
    the program itself is solved.

    Raises:
        SolverError: when no solver is there, it failed, or it found nothing in time.
    """
    search = search or Search()
    program = _program(cost, rates, budgets, rules, search)
    least = _solve(program, search, relaxed=True, gap=0.0)
    if least.status is Status.INFEASIBLE:
        return None
    bound_s = least.objective or 0.0
    rounded = _rounded(program, search)
    found = None if rounded is None else _solution(program, rounded, bound_s)
    if found is not None and found.gap <= search.gap:
        return found
    outcome = _solve(program, search, relaxed=False, gap=search.gap * cost.compute_s)
    if outcome.objective is not None:
        exact = _solution(program, outcome, bound_s)
        return exact if found is None or exact.step_s < found.step_s else found
    if found is None and outcome.status is not Status.INFEASIBLE:
        raise SolverError(f"{outcome.solver} found no plan in {search.time_limit_s:g} s")
    return found


def _rounded(program: Program, search: Search) -> Outcome | None:
    """Of a program whose relaxation was just solved."""
    return round_down(
        program,
        lambda: _solve(program, search, relaxed=True, gap=0.0),
    )


def _solution(program: Program, outcome: Outcome, bound_s: float) -> SwapSolution:
    assert outcome.objective is not None
    compute_s = program.cost.compute_s
    gap = (outcome.objective - bound_s) / (compute_s + outcome.objective)
    return SwapSolution(_plan(program), outcome, compute_s + program.lost_s, max(0.0, gap))


def missing_bytes(
    cost: StepCost,
    rates: Rates,
    budgets: Budgets,
    rules: Rules | None = None,
    search: Search | None = None,
) -> dict[Tier, int | None]:
    """For each tier, the smallest increase of its budget, to a MiB, that makes a plan fit, the
    others staying as they are; 0 when it fits; None when no increase does, or none was found in
    time.
    """
    search = search or Search()
    program = _program(cost, rates, budgets, rules, search)
    missing: dict[Tier, int | None] = {}
    for tier in Tier if rates.has_ssd else (Tier.DEVICE, Tier.HOST):
        program.minimise_slack(tier)
        outcome = _solve(program, search, relaxed=False, gap=1 / 1024)
        least = outcome.objective
        missing[tier] = None if least is None else _up_to_mib(least)
    return missing


def _program(
    cost: StepCost, rates: Rates, budgets: Budgets, rules: Rules | None, search: Search
) -> Program:
    groups = group_layers(cost.layers, search.max_groups)
    return Program(cost, rates, budgets, rules or Rules(), groups)


def _solve(program: Program, search: Search, *, relaxed: bool, gap: float) -> Outcome:
    return solve(
        program.problem,
        time_limit_s=search.time_limit_s,
        gap=gap,
        solver=search.solver,
        relaxed=relaxed,
    )


def _plan(program: Program) -> SwapPlan:
    layers = [layer for own in program.variables for layer in _deal(own)]
    return SwapPlan(
        tile_tokens=program.cost.tile_tokens,
        in_flight_bytes=_in_flight_bytes(program, layers),
        layers=tuple(layers),
    )


def _deal(own: GroupVariables) -> list[LayerSwap]:
    hands = own.group.count
    tiles = deal(solved(own.tiles), Placement.KEEP, hands)
    x, o = (deal(solved(tiers), Tier.DEVICE, hands) for tiers in (own.x, own.o))
    return [LayerSwap(tiles=tiles[i], x=next(iter(x[i])), o=next(iter(o[i]))) for i in range(hands)]


def _in_flight_bytes(program: Program, layers: Sequence[LayerSwap]) -> int:
    """What was asked; or as much as helps and fits beside what is stored."""
    moved = [moved_bytes(c, s) for c, s in zip(program.cost.layers, layers, strict=True)]
    least = _up(program.in_flight.varValue)
    if program.budgets.in_flight_bytes is not None or not any(moved):
        return program.budgets.in_flight_bytes or 0
    live = max(pulp.value(m) for m in live_moments(program.cost, program.variables))
    resident = program.cost.resident_bytes.get(Tier.DEVICE, 0)
    room = program.budgets.device_bytes - resident - _up(live)
    if any(_spills(layer) for layer in layers):
        room = min(room, _host_room(program))
    return max(least, min(_ROUNDING_BUFFERS * max(moved), room))


def _host_room(program: Program) -> int:
    stored = sum(pulp.value(own.stored(Tier.HOST)) for own in program.variables)
    resident = program.cost.resident_bytes.get(Tier.HOST, 0)
    return program.budgets.host_bytes - resident - _up(stored)


def _spills(layer: LayerSwap) -> bool:
    """Whether anything of the layer goes to the SSD."""
    return Tier.SSD in (layer.x, layer.o) or layer.tiles.get(Placement.SSD, 0) > 0


def moved_bytes(cost: LayerCost, layer: LayerSwap) -> int:
    """What a layer sends to the host or beyond."""
    tiles = layer.tiles.get(Placement.HOST, 0) + layer.tiles.get(Placement.SSD, 0)
    x_bytes = cost.x_bytes if layer.x is not Tier.DEVICE else 0
    o_bytes = cost.o_bytes if layer.o is not Tier.DEVICE else 0
    return tiles * cost.tile_bytes + x_bytes + o_bytes


def _up_to_mib(gib: float) -> int:
    """Whole MiB, with room for what a solver lets constraints miss; 0 stays."""
    return math.ceil(gib * 1024 + 0.25) << 20 if gib * GIB >= 1 else 0


def _up(gib: float) -> int:
    """Whole bytes."""
    return math.ceil(gib * GIB)
