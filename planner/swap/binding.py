"""What a step would be shorter with: the budgets and lanes that bind.

Scope: solving the program without its integrality, with one thing after another made larger. What
the optimizer spends on lanes at the step's end is no part of the program, and follows their rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from planner.contracts import Lane
from planner.swap.contracts import Budgets, Rates, StepCost
from planner.swap.groups import group_layers
from planner.swap.program import Program
from planner.swap.solver import solve
from planner.swap.solving import Search
from planner.swap.variables import Rules

MORE = 1.1
"""How much larger each thing is made."""

_NOTICEABLE = 1e-4
"""Of the step; what saves less does not bind."""

COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class _Case:
    """What is made larger, and the optimizer's seconds on each lane with it."""

    rates: Rates
    budgets: Budgets
    optimizer_s: Mapping[Lane, float]


_Change = Callable[[_Case], _Case]
_Grow = Callable[[_Case, float], _Case]


def binding(
    cost: StepCost,
    rates: Rates,
    budgets: Budgets,
    rules: Rules | None = None,
    search: Search | None = None,
) -> tuple[str, ...]:
    """Names of what makes the step shorter when there is a tenth more of it, the most helpful
    first; without recomputation, waiting or an optimizer that copies, or when nothing of these
    helps, `compute` (the processors' too, where they update the weights). None of them for a step
    that does not fit: see `missing_bytes`.

    Budgets are "device memory", "host memory" and "SSD space"; lanes, in both directions, "PCIe"
    and "SSD speed". Where only several together help, each is named.
    """
    search = search or Search()

    def lost_s(case: _Case) -> float | None:
        groups = group_layers(cost.layers, 1 << 30)
        program = Program(cost, case.rates, case.budgets, rules or Rules(), groups)
        outcome = solve(program.problem, time_limit_s=search.time_limit_s, relaxed=True)
        copied_s = sum(case.optimizer_s.values())
        return program.lost_s + copied_s if outcome.is_solved else None

    case = _Case(rates, budgets, cost.optimizer_lanes_s)
    now_s = lost_s(case)
    least_s = _NOTICEABLE * cost.compute_s
    if now_s is None:
        return ()
    if now_s <= least_s:
        return (COMPUTE,)
    gains = {name: now_s - _known(lost_s(_only(name)(case)), now_s) for name in _CHANGES}
    if max(gains.values()) <= least_s:
        gains = {n: _known(lost_s(_all_but(n)(case)), 0.0) for n in _CHANGES}
    found = sorted((n for n in gains if gains[n] > least_s), key=lambda n: -gains[n])
    return tuple(found) or (COMPUTE,)


def _known(seconds: float | None, otherwise_s: float) -> float:
    return otherwise_s if seconds is None else seconds


def _only(name: str) -> _Change:
    return lambda case: _CHANGES[name](case, MORE)


def _all_but(name: str) -> _Change:
    """All other things without limit, so that what is lost is lost to this one."""

    def change(case: _Case) -> _Case:
        for other, grow in _CHANGES.items():
            if other != name:
                case = grow(case, 1e3)
        return case

    return change


def _grow_rates(*lanes: Lane) -> _Grow:
    def grow(case: _Case, factor: float) -> _Case:
        rates = {f"{lane.name.lower()}_bytes_per_s": case.rates.of(lane) * factor for lane in lanes}
        shorter = {lane: s / factor for lane, s in case.optimizer_s.items() if lane in lanes}
        return replace(
            case,
            rates=replace(case.rates, **rates),
            optimizer_s={**case.optimizer_s, **shorter},
        )

    return grow


def _grow_budget(name: str) -> _Grow:
    def grow(case: _Case, factor: float) -> _Case:
        size_bytes = round(getattr(case.budgets, name) * factor)
        return replace(case, budgets=replace(case.budgets, **{name: size_bytes}))

    return grow


_CHANGES: Mapping[str, _Grow] = {
    "device memory": _grow_budget("device_bytes"),
    "host memory": _grow_budget("host_bytes"),
    "SSD space": _grow_budget("ssd_bytes"),
    "PCIe": _grow_rates(Lane.D2H, Lane.H2D),
    "SSD speed": _grow_rates(Lane.SSD_WRITE, Lane.SSD_READ),
}
