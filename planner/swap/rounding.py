"""A plan from a program's relaxation: whole layers for x and o first, then whole tiles.

Scope: rounding. It never fails for lack of time, and on groups of many tiles it is as good as what
the whole numbers allow; `solving.py` measures how good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import floor

import pulp

from planner.contracts import Placement, Tier
from planner.swap.program import Program
from planner.swap.solver import Outcome, Status
from planner.swap.variables import GroupVariables

_NEAR = 1e-6
"""What a solver's whole numbers may lack."""

_LEFTOVERS = (Tier.HOST, Tier.SSD, Tier.DEVICE)
"""Where layers go that rounding down leaves over, one way after the other."""


def round_down(program: Program, solve_again: Callable[[], Outcome]) -> Outcome | None:
    """Give the variables of a program, whose relaxation was just solved, whole values that keep all
    constraints; None when this way finds none, or there is no recomputation to fall back on.

    x and o are fixed to whole layers, and the relaxation is solved again; then tiles are rounded
    down, and what is left over is recomputed. Less is stored and moved, and lanes have more time:
    no constraint is broken by that.
    """
    if not all(Placement.RECOMPUTE in own.tiles for own in program.variables):
        return None
    counts = [_relaxed(own) for own in program.variables]
    spills = _value(program.uses_ssd) > _NEAR
    for leftover in _LEFTOVERS:
        if not all(leftover in own.x for own in program.variables):
            continue
        with _fixed(program, counts, leftover, spills=spills or leftover is Tier.SSD):
            outcome = solve_again()
        if outcome.is_solved:
            for own in program.variables:
                _round_tiles(own)
            objective = float(pulp.value(program.problem.objective))
            return Outcome(Status.FEASIBLE, outcome.solver, outcome.solve_s, objective)
    return None


def _relaxed(own: GroupVariables) -> list[dict[Tier, float]]:
    return [{tier: _value(v) for tier, v in tiers.items()} for tiers in (own.x, own.o)]


@contextmanager
def _fixed(
    program: Program, counts: list[list[dict[Tier, float]]], leftover: Tier, *, spills: bool
) -> Iterator[None]:
    """Layers by tier fixed to whole numbers near `counts`, and whether the SSD is used."""
    wanted = [(program.uses_ssd, int(spills))]
    for own, relaxed in zip(program.variables, counts, strict=True):
        for variables, values in zip((own.x, own.o), relaxed, strict=True):
            whole = {tier: floor(value + _NEAR) for tier, value in values.items()}
            whole[leftover] += own.group.count - sum(whole.values())
            wanted += [(variables[tier], whole[tier]) for tier in variables]
    bounds = [(variable.lowBound, variable.upBound) for variable, _ in wanted]
    for variable, value in wanted:
        variable.lowBound = variable.upBound = value
    try:
        yield
    finally:
        for (variable, _), (low, up) in zip(wanted, bounds, strict=True):
            variable.lowBound, variable.upBound = low, up


def _round_tiles(own: GroupVariables) -> None:
    stored = 0
    for placement, variable in own.tiles.items():
        if placement is not Placement.RECOMPUTE:
            variable.varValue = floor(_value(variable) + _NEAR)
            stored += variable.varValue
    own.tiles[Placement.RECOMPUTE].varValue = own.group.tiles - stored


def _value(variable: pulp.LpVariable) -> float:
    return float(variable.varValue)
