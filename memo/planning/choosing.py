"""Which plan is taken: among places of model states and tile sizes, the shortest simulated step,
or one that is hardly longer and writes less to the SSD.

Scope: the search over what the mixed-integer program does not decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from memo.planning.costing import Costing, traced
from memo.planning.request import MOST_TILES, PlanRequest
from memo.planning.states import state_choices
from planner.contracts import Stored, Tier
from planner.schedule.planning import Simulated, effort, missing_for_step, plan_step
from planner.swap.contracts import Budgets, Rates, StepCost
from planner.swap.preference import Effort, may_be_preferred, preferred
from planner.swap.shares import budgets_of, rates_of
from planner.swap.solving import Search, least_step_s
from planner.trace import StepTrace

SMALLER = 4
"""By which tiles are made smaller where nothing fits: a tile's transient memory is what is left to
save then, and its matmuls are still large."""

LEAST_TILE_TOKENS = 256
"""Matmuls of fewer rows leave matmul units idle."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plan, with the trace and the costing that it is for."""

    costing: Costing
    trace: StepTrace
    found: Simulated

    @property
    def effort(self) -> Effort:
        """Of its step, without the optimizer's writes, which all that is compared has alike."""
        return effort(self.found)


@dataclass(slots=True)
class Case:
    """One request, its lanes and budgets, and its traces, which are made as they are needed.
    `largest`: the same with as many GPUs to a sequence as may be, where fewer were chosen; `notes`:
    why.
    """

    request: PlanRequest
    rates: Rates = field(init=False)
    budgets: Budgets = field(init=False)
    largest: Case | None = None
    notes: tuple[str, ...] = ()
    _traces: dict[tuple[int | None, Stored], StepTrace] = field(init=False, default_factory=dict)
    known: dict[Budgets, Chosen | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        node = self.request.node.hardware
        self.rates = rates_of(node, self.request.dtype, sharing=self.request.ranks)
        self.budgets = budgets_of(node, sharing=self.request.ranks)

    @property
    def search(self) -> Search:
        """How its plans are solved for."""
        return Search(tolerance=self.request.step_tolerance)

    def trace(self, tile_tokens: int | None = None, stored: Stored = Stored.BEFORE) -> StepTrace:
        """The step with tiles of this size; None: as requested."""
        key = tile_tokens, stored
        if key not in self._traces:
            self._traces[key] = traced(self.request, tile_tokens=tile_tokens, stored=stored)
        return self._traces[key]

    def trace_again(self, trace: StepTrace, stored: Stored) -> StepTrace:
        """One of the case's, with as large tiles, and something else stored for attention."""
        sizes = (size for (size, _), known in self._traces.items() if known is trace)
        return self.trace(next(sizes), stored)

    def traces(self) -> Iterator[StepTrace]:
        """The step as requested, and, unless the tile size was, with smaller and smaller tiles, as
        long as they are not too many.
        """
        trace = self.trace()
        yield trace
        size = tile_tokens_of(trace) // SMALLER
        while self.request.tile_tokens is None and size >= LEAST_TILE_TOKENS:
            if SMALLER * tiles_of(trace) > MOST_TILES:
                return
            trace = self.trace(size)
            yield trace
            size //= SMALLER

    def leanest_trace(self) -> StepTrace:
        """With the smallest tiles."""
        *_, last = self.traces()
        return last


def choose(case: Case, budgets: Budgets | None = None) -> Chosen | None:
    """The shortest step that fits, or, within the request's tolerance of it, the one that writes
    least to the SSD; None when none fits.

    Raises:
        SolverError: when no solver is there, or it failed.
    """
    allowed = budgets or case.budgets
    if allowed not in case.known:
        case.known[allowed] = _choose(case, allowed)
    return case.known[allowed]


def _choose(case: Case, allowed: Budgets) -> Chosen | None:
    for choices in state_choices(case.request):
        costings = [Costing(case.request, choice) for choice in choices]
        costings = [c for c in costings if _states_fit(c, case.trace(), allowed)]
        for trace in case.traces() if costings else ():
            chosen = _best(case, costings, trace, allowed)
            if chosen is not None:
                return chosen
    return None


def leanest(case: Case) -> list[Costing]:
    """Model states divided as far as may be, for each place of the optimizer."""
    every = state_choices(case.request)
    return [Costing(case.request, max(choices, key=lambda c: c.zero)) for choices in every]


def missing(case: Case) -> Mapping[Tier, int | None]:
    """For each tier the smallest increase, in one rank's bytes, that makes something fit."""
    costs = [costing.cost(case.leanest_trace()) for costing in leanest(case)]
    # Solved as plans are: what makes one fit is not what makes another.
    return missing_for_step(costs, case.rates, case.budgets, search=case.search)


def tile_tokens_of(trace: StepTrace) -> int:
    """Of the layers that are tiled; the length of the sequence where none is."""
    return min(layer.tile_tokens for layer in trace.layers)


def tiles_of(trace: StepTrace) -> int:
    """Of all layers together."""
    tiles = {layer.name: layer.tiles for layer in trace.layers}
    return sum(tiles[name] for name in trace.order)


def _states_fit(costing: Costing, trace: StepTrace, budgets: Budgets) -> bool:
    return costing.resident_device_bytes(trace) <= budgets.device_bytes


def _best(
    case: Case, costings: Sequence[Costing], trace: StepTrace, budgets: Budgets
) -> Chosen | None:
    """Among divisions of model states; those that cannot be preferred are not simulated."""
    tolerance, found = case.request.step_tolerance, list[Chosen]()
    for costing in costings:
        cost = costing.cost(trace)
        if found and not _may_win(case, cost, budgets, _least(found)):
            continue
        planned = plan_step([cost], case.rates, budgets, search=case.search)
        if planned is not None:
            found.append(Chosen(costing, trace, planned))
    return preferred(found, lambda chosen: chosen.effort, tolerance) if found else None


def _may_win(case: Case, cost: StepCost, budgets: Budgets, known: Effort) -> bool:
    bound_s = least_step_s(cost, case.rates, budgets)
    tolerance = case.request.step_tolerance
    return bound_s is not None and may_be_preferred(bound_s, known, tolerance)


def _least(found: Sequence[Chosen]) -> Effort:
    return min((chosen.effort for chosen in found), key=lambda one: one.seconds)
