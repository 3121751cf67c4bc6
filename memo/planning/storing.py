"""What is stored for attention's backward where ranks share a sequence: nothing of what they
exchange, o, or q, k, v and o.

Scope: the choice, once everything else is chosen with nothing stored. What is stored saves its
exchange in backward, and takes room and time on lanes.
"""

from __future__ import annotations

from dataclasses import replace

from memo.planning.choosing import Case, Chosen
from memo.planning.collectives import fewest_heads
from memo.planning.request import PlanRequest
from planner.contracts import Stored
from planner.schedule.planning import plan_step
from planner.swap.clock import Clock
from planner.swap.contracts import Budgets


def with_stored(case: Case, chosen: Chosen, budgets: Budgets | None = None) -> Chosen:
    """`chosen`, or the same with more stored, of which the shortest step is taken, or, within the
    request's tolerance of it, the one that stores least. What saves no more than the tolerance is
    not planned.

    Raises:
        SolverError: when no solver is there, or it failed.
    """
    found = [chosen]
    for stored in alternatives(case.request, chosen):
        if _may_win(case.request, chosen, stored):
            other = _with(case, chosen, stored, budgets or case.budgets)
            found += [] if other is None else [other]
    most_s = min(map(_step_s, found)) * (1 + case.request.step_tolerance)
    return next(one for one in found if _step_s(one) <= most_s)


def alternatives(request: PlanRequest, chosen: Chosen) -> tuple[Stored, ...]:
    """What else may be stored, least first. Of a ring, which more ranks than heads are, nothing
    is: what it sends is not exchanged heads for tokens alone.
    """
    heads = fewest_heads(request.config)
    is_tiled = all(layer.reason is None for layer in chosen.trace.layers)
    if not 1 < request.sequence_parallel <= heads or not is_tiled:
        return ()
    return Stored.OUTPUT, Stored.AFTER


def saved_s(request: PlanRequest, chosen: Chosen, stored: Stored) -> float:
    """The seconds of a step's exchanges that it saves to have this stored, at most."""
    costing, trace = chosen.costing, chosen.trace
    before, after = (of.exchanges(trace) for of in (costing, replace(costing, stored=stored)))
    clock = Clock(request.node.hardware, trace.dtype)
    return sum(
        clock.exchange_s(before[name].backward_bytes - after[name].backward_bytes)
        for name in trace.order
        if name in before
    )


def _may_win(request: PlanRequest, chosen: Chosen, stored: Stored) -> bool:
    least_s = _step_s(chosen) - saved_s(request, chosen, stored)
    return least_s * (1 + request.step_tolerance) < _step_s(chosen)


def _with(case: Case, chosen: Chosen, stored: Stored, budgets: Budgets) -> Chosen | None:
    costing, trace = replace(chosen.costing, stored=stored), case.trace_again(chosen.trace, stored)
    planned = plan_step([costing.cost(trace)], case.rates, budgets, search=case.search)
    return None if planned is None else Chosen(costing, trace, planned)


def _step_s(chosen: Chosen) -> float:
    return chosen.found.schedule.step_s
