"""From costs, rates and budgets to a swap plan, or to what is missing.

Scope: building the program and having it solved, by way of its relaxation; `reading.py` reads the
plan out of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from planner.contracts import SwapPlan, Tier
from planner.swap.contracts import Budgets, Rates, StepCost
from planner.swap.groups import group_layers
from planner.swap.preference import Effort, preferred
from planner.swap.program import WRITING_COST, Program
from planner.swap.reading import read_plan
from planner.swap.rounding import round_down
from planner.swap.solver import Outcome, SolverError, Status, solve
from planner.swap.variables import GIB, Rules

_WRITTEN_GAPS = 10
"""What a rounded plan may write beyond the least, in gaps of all that could be stored: whole layers
round coarsely, and the program itself takes seconds."""

_SLACK = 1e-6
"""Relatively, of a limit that a solved program has just met: solvers miss constraints by less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How hard to look: seconds for each solve, the gap in step time at which to stop, relatively,
    groups of layers at most (about), and the solver by PuLP's name (None: the best installed).
    `tolerance`: of steps that are at most so much longer than the shortest, relatively, the one
    that writes least to the SSD is taken, and of these the one that moves least.
    """

    time_limit_s: float = 5.0
    gap: float = 1e-3
    max_groups: int = 16
    solver: str | None = None
    tolerance: float = 0.0

    @property
    def allowed_gap(self) -> float:
        """The tolerance as a share of the longer step."""
        return self.tolerance / (1 + self.tolerance)

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}: takes 0 or more, and less than 1")


@dataclass(frozen=True, slots=True)
class SwapSolution:
    """A plan that keeps the program's budgets. `gap`: how much shorter, relatively, a step may be
    at most; `step_s` and `written_bytes`, to the SSD, as the program sees them.
    """

    plan: SwapPlan
    outcome: Outcome
    step_s: float
    gap: float
    written_bytes: int = 0

    @property
    def effort(self) -> Effort:
        """What it takes."""
        return Effort(self.step_s, self.written_bytes, self.step_s * (1 - self.gap))


def solve_swap(
    cost: StepCost,
    rates: Rates,
    budgets: Budgets,
    rules: Rules | None = None,
    search: Search | None = None,
) -> SwapSolution | None:
    """The plan with the shortest step that was found in time, or, with a tolerance, one that writes
    less and is hardly longer; None when none fits.

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
    bound_s, most_lost_s, least_gib = least.objective or 0.0, 0.0, 0.0
    if search.tolerance:
        most_lost_s = _allowed_s(program, search)
        _write_less(program, search, most_lost_s, relaxed=True)
        least_gib = program.written_gib
    rounded = round_down(program, lambda: _fastest(program, search, most_lost_s, relaxed=True))
    found = None if rounded is None else _solution(program, rounded, bound_s)
    if found is not None and _suffices(program, search, found.gap, least_gib):
        return found
    outcome = _fastest(program, search, most_lost_s, relaxed=False)
    if outcome.objective is not None:
        return _better(_solution(program, outcome, bound_s), found, search)
    if found is None and outcome.status is not Status.INFEASIBLE:
        raise SolverError(f"{outcome.solver} found no plan in {search.time_limit_s:g} s")
    return found


def least_step_s(
    cost: StepCost, rates: Rates, budgets: Budgets, search: Search | None = None
) -> float | None:
    """What no plan's step can beat, by the relaxed program with as little in flight as may be; None
    when none fits.

    Raises:
        SolverError: when no solver is there, or it failed.
    """
    search = search or Search()
    program = _program(cost, rates, budgets, Rules(held_layers=0.0), search)
    outcome = _solve(program, search, relaxed=True, gap=0.0)
    return cost.compute_s + program.lost_s if outcome.is_solved else None


def _better(exact: SwapSolution, rounded: SwapSolution | None, search: Search) -> SwapSolution:
    """The rounded one only if it is shorter, or as short as asked and writes less."""
    if rounded is None:
        return exact
    is_short = rounded.gap <= search.gap + search.allowed_gap
    if not is_short and rounded.step_s >= exact.step_s:
        return exact
    return preferred([exact, rounded], lambda solution: solution.effort, search.tolerance)


def _suffices(program: Program, search: Search, gap: float, least_gib: float) -> bool:
    """Whether a program, as its variables are now, is as short as asked, and writes hardly more
    than it must.
    """
    if not search.tolerance:
        return gap <= search.gap
    everything_gib = sum(layer.all_bytes for layer in program.cost.layers) / GIB
    most_gib = least_gib + _WRITTEN_GAPS * search.gap * everything_gib + _SLACK
    return gap <= search.gap + search.allowed_gap and program.written_gib <= most_gib


def _allowed_s(program: Program, search: Search) -> float:
    """The seconds that may be lost, by the tolerance, beside what a solved program loses."""
    lost_s = program.lost_s
    return lost_s + search.tolerance * (program.cost.compute_s + lost_s)


def _fastest(program: Program, search: Search, most_lost_s: float, *, relaxed: bool) -> Outcome:
    """The shortest step, or, with a tolerance, one that writes less: it loses `most_lost_s` at
    most, or what the shortest does where that is more, and, in whole numbers, what the tolerance
    adds to that.
    """
    program.lose_any()
    program.minimise_step()
    gap = 0.0 if relaxed else search.gap * program.cost.compute_s
    outcome = _solve(program, search, relaxed=relaxed, gap=gap)
    if not search.tolerance or not outcome.is_solved:
        return outcome
    least_s = program.lost_s if relaxed else _allowed_s(program, search)
    return _write_less(program, search, max(most_lost_s, least_s), relaxed=relaxed)


def _write_less(program: Program, search: Search, most_lost_s: float, *, relaxed: bool) -> Outcome:
    """Of a solved program, which keeps its values where nothing is found in time."""
    before = {variable: variable.varValue for variable in program.problem.variables()}
    written_gib = program.written_gib
    program.minimise_writing(most_lost_s * (1 + _SLACK))
    gap = 0.0 if relaxed else search.gap * written_gib * WRITING_COST
    outcome = _solve(program, search, relaxed=relaxed, gap=gap)
    if outcome.is_solved:
        return outcome
    for variable, value in before.items():
        variable.varValue = value
    return replace(outcome, status=Status.FEASIBLE, objective=program.step_objective_s)


def _solution(program: Program, outcome: Outcome, bound_s: float) -> SwapSolution:
    compute_s, objective_s = program.cost.compute_s, program.step_objective_s
    gap = (objective_s - bound_s) / (compute_s + objective_s)
    return SwapSolution(
        plan=read_plan(program),
        outcome=outcome,
        step_s=compute_s + program.lost_s,
        gap=max(0.0, gap),
        written_bytes=round(program.written_gib * GIB),
    )


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


def _up_to_mib(gib: float) -> int:
    """Whole MiB, with room for what a solver lets constraints miss; 0 stays."""
    return math.ceil(gib * 1024 + 0.25) << 20 if gib * GIB >= 1 else 0
