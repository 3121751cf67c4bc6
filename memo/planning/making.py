"""From a checked request to a plan that was simulated and laid out, or to why there is none.

Scope: the order of the work. Each part has a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memo.planning.arena import Arena, lay_out
from memo.planning.choosing import Case, Chosen, choose, leanest, missing
from memo.planning.degrees import best_case, largest_instead
from memo.planning.longest import find_longest
from memo.planning.notes import layout_note, notes_of
from memo.planning.request import PlanRequest
from memo.planning.reserved import reserved_note
from memo.planning.storing import with_stored
from planner.contracts import Tier
from planner.plan import NoPlan, Plan
from planner.schedule.contracts import Schedule
from planner.schedule.result import plan_of
from planner.swap.binding import binding
from planner.swap.contracts import Budgets, Rates

LAYOUT_ROUNDS = 3
"""Of planning again, with less, where a layout is higher than what the simulation holds."""

LAYOUT_MARGIN_BYTES = 16 << 20
"""Taken off beside what a layout has too much: alignment, and storages below 1 MiB, vary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A plan with what it was made from, or why there is none."""

    result: Plan | NoPlan
    schedule: Schedule | None = None
    arena: Arena | None = None


@dataclass(frozen=True, slots=True)
class _TooHigh:
    """Plans were simulated within the budgets; `excess_bytes` is what the lowest of their layouts
    takes of the device beyond its own.
    """

    excess_bytes: int


def make(request: PlanRequest) -> Outcome:
    """Plan what was requested.

    Raises:
        MemoError: for a model that cannot be traced.
        SolverError: when no solver is installed, or it failed.
    """
    case = best_case(request)
    found = _laid_out(case)
    largest = largest_instead(case) if isinstance(found, _TooHigh) else None
    if largest is not None:
        case, found = largest, _laid_out(largest)
    if isinstance(found, _TooHigh):
        return Outcome(result=_no_layout(case, found.excess_bytes))
    longest = _longest(case, fits=found is not None) if request.find_longest else None
    if found is None:
        return Outcome(result=_no_plan(case, longest))
    chosen, arena = found
    schedule = chosen.found.schedule
    return Outcome(result=_plan(case, chosen, arena, longest), schedule=schedule, arena=arena)


def _longest(case: Case, *, fits: bool) -> int:
    """With as many GPUs to a sequence as may be, whatever is fastest at this length."""
    return find_longest(case.largest or case, fits=fits)


def _laid_out(case: Case) -> tuple[Chosen, Arena | None] | _TooHigh | None:
    """A plan whose layout fits too, if one is found in a few rounds; None where nothing fits by the
    simulation alone.
    """
    budgets = case.budgets
    least: int | None = None
    for _ in range(LAYOUT_ROUNDS if case.request.lay_out else 1):
        chosen = choose(case, budgets)
        if chosen is None:
            break
        chosen = with_stored(case, chosen, budgets)
        arena = _arena(chosen) if case.request.lay_out else None
        excess = 0 if arena is None else _excess_bytes(case, chosen, arena)
        if not excess:
            return chosen, arena
        least = excess if least is None else min(least, excess)
        budgets = _less(budgets, excess + LAYOUT_MARGIN_BYTES)
    return None if least is None else _TooHigh(least)


def _arena(chosen: Chosen) -> Arena:
    trace = chosen.trace
    share = chosen.costing.gradient_share(trace)
    return lay_out(trace, chosen.found.plan, gradient_share=share)


def _excess_bytes(case: Case, chosen: Chosen, arena: Arena) -> int:
    resident = chosen.costing.resident_device_bytes(chosen.trace)
    return max(0, resident + arena.height_bytes - case.budgets.device_bytes)


def _less(budgets: Budgets, size_bytes: int) -> Budgets:
    return replace(budgets, device_bytes=max(0, budgets.device_bytes - size_bytes))


def _plan(case: Case, chosen: Chosen, arena: Arena | None, longest: int | None) -> Plan:
    request, trace = case.request, chosen.trace
    binds = binding(chosen.found.cost, _rates_used(case, chosen), case.budgets)
    plan = plan_of(
        chosen.costing.workload(trace),
        request.node.hardware,
        chosen.found,
        binding=binds,
        longest_tokens=longest,
    )
    written = chosen.costing.optimizer(trace).written_bytes
    predictions = replace(
        plan.predictions,
        ssd_written_bytes_per_step=plan.predictions.ssd_written_bytes_per_step + written,
        arena_bytes=None if arena is None else arena.height_bytes,
        arena_lower_bound_bytes=None if arena is None else arena.lower_bound_bytes,
        reserved_bytes=None if arena is None else arena.reserved_bytes,
    )
    first = choose(case)  # with all of the budgets, and known
    simulated = None if first is None else first.costing
    notes = [*request.notes, *case.notes, *notes_of(request, trace, chosen.costing, simulated)]
    reserved = None if arena is None else _reserved(case, chosen, arena)
    notes += [] if reserved is None else [reserved]
    return replace(plan, predictions=predictions, notes=tuple(notes))


def _reserved(case: Case, chosen: Chosen, arena: Arena) -> str | None:
    """A processor's memory is not the caching allocator's."""
    if case.request.node.device_kind != "cuda":
        return None
    return reserved_note(
        arena.problem,
        arena.reserved_bytes,
        resident_bytes=chosen.costing.resident_device_bytes(chosen.trace),
        device_bytes=case.budgets.device_bytes,
    )


def _rates_used(case: Case, chosen: Chosen) -> Rates:
    """Without the SSD's where the plan writes nothing to it: no more of it is asked for, then. The
    optimizer's writes are apart, in the costs.
    """
    if chosen.effort.written_bytes:
        return case.rates
    return replace(case.rates, ssd_write_bytes_per_s=0.0, ssd_read_bytes_per_s=0.0)


def _no_plan(case: Case, longest: int | None) -> NoPlan:
    return replace(_none(case), missing_bytes=missing(case), longest_tokens=longest)


def _no_layout(case: Case, excess_bytes: int) -> NoPlan:
    """What is missing is known of the device alone. The longest sequence is not told: it is looked
    for without layouts, and might be longer than what was asked.
    """
    none = _none(case)
    missing_bytes = {Tier.DEVICE: excess_bytes + LAYOUT_MARGIN_BYTES}
    return replace(
        none, missing_bytes=missing_bytes, notes=(*none.notes, layout_note(excess_bytes))
    )


def _none(case: Case) -> NoPlan:
    """Without what is missing."""
    request, trace = case.request, case.trace()
    costing = next(iter(leanest(case)))
    return NoPlan(
        workload=costing.workload(trace),
        hardware=request.node.hardware,
        missing_bytes={},
        notes=(*request.notes, *case.notes, *notes_of(request, trace, None)),
    )
