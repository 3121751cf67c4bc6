"""What a step would be shorter with: the budgets and lanes that bind.

Scope: solving the program without its integrality, with one thing after another made larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

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

_Case = tuple[Rates, Budgets]
_Change = Callable[[Rates, Budgets], _Case]


def binding(
    cost: StepCost,
    rates: Rates,
    budgets: Budgets,
    rules: Rules | None = None,
    search: Search | None = None,
) -> tuple[str, ...]:
    """Names of what makes the step shorter when there is a tenth more of it, the most helpful
    first; without recomputation or waiting, or when nothing of these helps, `compute`. None of
    them for a step that does not fit: see `missing_bytes`.

    Budgets are "device memory", "host memory" and "SSD space"; lanes, in both directions, "PCIe"
    and "SSD speed". Where only several together help, each is named.
    """
    search = search or Search()

    def lost_s(case: _Case) -> float | None:
        program = Program(cost, *case, rules or Rules(), group_layers(cost.layers, 1 << 30))
        outcome = solve(program.problem, time_limit_s=search.time_limit_s, relaxed=True)
        return program.lost_s if outcome.is_solved else None

    now_s = lost_s((rates, budgets))
    least_s = _NOTICEABLE * cost.compute_s
    if now_s is None:
        return ()
    if now_s <= least_s:
        return (COMPUTE,)
    gains = {name: now_s - (lost_s(_only(name)(rates, budgets)) or now_s) for name in _CHANGES}
    if max(gains.values()) <= least_s:
        gains = {n: (lost_s(_all_but(n)(rates, budgets)) or 0.0) for n in _CHANGES}
    found = sorted((n for n in gains if gains[n] > least_s), key=lambda n: -gains[n])
    return tuple(found) or (COMPUTE,)


def _only(name: str) -> _Change:
    return lambda rates, budgets: _CHANGES[name](rates, budgets, MORE)


def _all_but(name: str) -> _Change:
    """All other things without limit, so that what is lost is lost to this one."""

    def change(rates: Rates, budgets: Budgets) -> _Case:
        for other, grow in _CHANGES.items():
            if other != name:
                rates, budgets = grow(rates, budgets, 1e3)
        return rates, budgets

    return change


def _grow_rates(*names: str) -> Callable[[Rates, Budgets, float], _Case]:
    def grow(rates: Rates, budgets: Budgets, factor: float) -> _Case:
        return replace(rates, **{n: getattr(rates, n) * factor for n in names}), budgets

    return grow


def _grow_budget(name: str) -> Callable[[Rates, Budgets, float], _Case]:
    def grow(rates: Rates, budgets: Budgets, factor: float) -> _Case:
        return rates, replace(budgets, **{name: round(getattr(budgets, name) * factor)})

    return grow


_CHANGES: Mapping[str, Callable[[Rates, Budgets, float], _Case]] = {
    "device memory": _grow_budget("device_bytes"),
    "host memory": _grow_budget("host_bytes"),
    "SSD space": _grow_budget("ssd_bytes"),
    "PCIe": _grow_rates("d2h_bytes_per_s", "h2d_bytes_per_s"),
    "SSD speed": _grow_rates("ssd_write_bytes_per_s", "ssd_read_bytes_per_s"),
}
