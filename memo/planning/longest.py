"""How long a sequence may get, for one request.

Scope: putting `lengths.py` to use. Model states lie as leanly as the request lets them. Steps are
simulated, and not laid out: the length that is told may be one of which no layout fits, and what
prints it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memo.planning.choosing import Case, choose, leanest, tile_tokens_of, tiles_of
from memo.planning.costing import Costing, local_tokens
from memo.planning.lengths import Lengths, confirmed
from memo.planning.request import MOST_TILES, PlanRequest
from planner.schedule.planning import excess_bytes, longest_tokens
from planner.schedule.simulation import simulate
from planner.swap.contracts import Budgets, Rates, StepCost
from planner.swap.solving import Search, solve_swap
from planner.swap.variables import Rules
from planner.trace import StepTrace

PRECISION = 32
"""The answer is told to a power of two that is at most a 32nd of the length asked, or, where that
does not fit, to `FINE_TOKENS`."""

FINE_TOKENS = 1024

SHORTER = 16
"""By which the length is divided where nothing is found from the one that was asked."""

MOST = 64
"""How many times the length asked is looked at, at most, if the tiles are not too many."""

_ROUNDS = 3
"""Of tightening, where the simulation holds more than the program saw."""

_RULES = Rules(held_layers=0.0)
_SEARCH = Search(gap=1.0)
"""Whether there is a plan, however slow."""


def find_longest(case: Case, *, fits: bool) -> int:
    """The longest sequence whose simulated step fits, to about a 16th of its length or better, and
    at most 64 times it, or fewer with very many tiles; 0 when none was found. `fits`: whether the
    request's own length does.

    Raises:
        SolverError: when no solver is there, or it failed.
    """
    request = case.request
    unit = _unit(request, fits=fits)
    trace = case.trace() if fits else case.leanest_trace()
    lengths = _lengths(case, trace, _other_length(request, fits=fits))

    def may_fit(tokens: int) -> bool:
        local = -(-tokens // request.sequence_parallel)
        return any(_has_plan(each.at(local), case.rates, case.budgets) for each in lengths)

    guess = longest_tokens(
        may_fit,
        start_tokens=2 * request.tokens if fits else max(unit, request.tokens // 2),
        unit_tokens=unit,
        most_tokens=_most(trace) * request.tokens,
    )
    least = request.tokens if fits else 0
    step = max(unit, guess // PRECISION)
    # The program's own bound is somewhat beyond what simulations keep: the step below it is tried.
    shorter = max(guess - step, min(guess, least + 1))
    found = guess > least and confirmed(
        shorter, lambda tokens: _fits(case, trace, tokens), unit_tokens=step
    )
    return max(found or 0, least) or _much_shorter(request)


def _most(trace: StepTrace) -> int:
    """Times the length asked that are looked at, in tiles as large."""
    return max(1, min(MOST, MOST_TILES // tiles_of(trace)))


def _much_shorter(request: PlanRequest) -> int:
    """Where costs of much longer sequences tell nothing: tiles and the loss's are cut short."""
    tokens = request.tokens // SHORTER
    if tokens < request.sequence_parallel:
        return 0
    case = Case(replace(request, tokens=tokens))
    longest = find_longest(case, fits=choose(case) is not None)
    return min(longest, request.tokens - 1)


def _unit(request: PlanRequest, *, fits: bool) -> int:
    size = 1 << max(1, request.tokens // PRECISION).bit_length() - 1
    return max(request.sequence_parallel, size if fits else min(size, FINE_TOKENS))


def _other_length(request: PlanRequest, *, fits: bool) -> int:
    half = request.tokens // 2
    return half if not fits and half >= request.sequence_parallel else 2 * request.tokens


def _lengths(case: Case, trace: StepTrace, tokens: int) -> Sequence[Lengths]:
    request = replace(case.request, tokens=tokens)
    second = Case(request).trace(tile_tokens_of(trace))
    return [
        Lengths(
            costing.cost(trace),
            Costing(request, costing.choice).cost(second),
            local_tokens(case.request),
            local_tokens(request),
        )
        for costing in leanest(case)
    ]


def _has_plan(cost: StepCost, rates: Rates, budgets: Budgets) -> bool:
    return solve_swap(cost, rates, budgets, _RULES, _SEARCH) is not None


def _fits(case: Case, like: StepTrace, tokens: int) -> bool:
    """Whether a plan for the length, traced with the tiles that `like` has, keeps the budgets."""
    other = Case(replace(case.request, tokens=tokens))
    trace = other.trace(tile_tokens_of(like))
    # Optimizer states on the host or the SSD, which come last, leave the most to activations.
    costs = (costing.cost(trace) for costing in reversed(leanest(other)))
    return any(_is_simulated(cost, case.rates, case.budgets) for cost in costs)


def _is_simulated(cost: StepCost, rates: Rates, budgets: Budgets) -> bool:
    allowed = budgets
    for _ in range(_ROUNDS):
        solution = solve_swap(cost, rates, allowed, _RULES, _SEARCH)
        if solution is None:
            return False
        over = excess_bytes(simulate(cost, rates, solution.plan), budgets)
        if not over:
            return True
        sizes = {f"{tier}_bytes": max(0, allowed.of(tier) - size) for tier, size in over.items()}
        allowed = replace(allowed, **sizes)
    return False
