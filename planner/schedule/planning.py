"""Swap plans that are returned only after a simulation kept every budget.

Scope: solving, simulating, and tightening where the two disagree; choosing among tile sizes; what
is missing when nothing fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from planner.contracts import Lane, SwapPlan, Tier
from planner.schedule.contracts import Schedule
from planner.schedule.simulation import simulate
from planner.swap.contracts import Budgets, Rates, StepCost
from planner.swap.preference import Effort, preferred
from planner.swap.solving import Search, SwapSolution, missing_bytes, solve_swap
from planner.swap.variables import Rules

_HELD_LAYERS = (2.0, 1.0, 0.5, 0.0)
"""Bytes in flight, in layers, that are tried: MEMO's two buffers take the most memory and hide the
most. The simulation says which of them makes the shortest step; the small ones are for steps that
fit in no other way."""

_ROUNDS = 6
"""Of tightening: each takes off what the last simulation had too much."""

_GROWTH_BYTES = 16 << 20
"""What is added to an increase at first, when it did not suffice in the simulation; each time four
times as much, until it does."""

_CLOSE = 1e-3
"""A simulated step that is within this of what no plan can beat ends the search."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """A plan, how it was found, the costs that it is for, and its step."""

    cost: StepCost
    solution: SwapSolution
    schedule: Schedule

    @property
    def plan(self) -> SwapPlan:
        return self.solution.plan

    @property
    def gap(self) -> float:
        """How much shorter, relatively, a step may be at most, by the program's bound."""
        bound_s = self.solution.step_s * (1 - self.solution.gap)
        return max(0.0, 1 - bound_s / self.schedule.step_s)


def plan_step(
    costs: Sequence[StepCost],
    rates: Rates,
    budgets: Budgets,
    rules: Rules | None = None,
    search: Search | None = None,
) -> Simulated | None:
    """The shortest simulated step over all `costs`, which are one step at several tile sizes, or
    one that is hardly longer and writes less (`Search.tolerance`); None when none fits.

    Raises:
        SolverError: when no solver is there, or it failed.
    """
    found_all: list[Simulated] = []
    search = search or Search()
    for cost in costs:
        for held_layers in _HELD_LAYERS:
            chosen = replace(rules or Rules(), held_layers=held_layers)
            found = _fitting(cost, rates, budgets, chosen, search)
            if found is None:
                continue
            found_all.append(found)
            if found.gap <= _CLOSE + search.allowed_gap or budgets.in_flight_bytes is not None:
                break
    return preferred(found_all, effort, search.tolerance) if found_all else None


def effort(found: Simulated) -> Effort:
    """Of a simulated step."""
    step_s, written_bytes = found.schedule.step_s, found.schedule.moved_bytes[Lane.SSD_WRITE]
    return Effort(step_s, written_bytes, step_s * (1 - found.gap))


def missing_for_step(
    costs: Sequence[StepCost],
    rates: Rates,
    budgets: Budgets,
    rules: Rules | None = None,
    search: Search | None = None,
) -> dict[Tier, int | None]:
    """For each tier, the smallest increase (to what the simulation takes) that makes one of `costs`
    fit, the others staying as they are; 0 when it fits; None when no increase of it alone does.
    """
    chosen = replace(rules or Rules(), held_layers=0.0)
    least: dict[Tier, int | None] = {}
    for cost in costs:
        missing = missing_bytes(cost, rates, budgets, chosen, search)
        for tier, size_bytes in missing.items():
            if size_bytes is not None:
                size_bytes = _confirmed(cost, rates, budgets, chosen, search, tier, size_bytes)
            known = least.get(tier)
            sizes = [size for size in (known, size_bytes) if size is not None]
            least[tier] = min(sizes, default=None)
    return least


def longest_tokens(
    fits: Callable[[int], bool], *, start_tokens: int, unit_tokens: int = 1024, most_tokens: int
) -> int:
    """The longest sequence that fits, as a multiple of `unit_tokens` up to `most_tokens`; 0 when
    not even one unit does. `fits` must not be true of a longer sequence than it is false of.
    """
    shortest, longest = 0, max(1, most_tokens // unit_tokens)
    guess = min(longest, max(1, start_tokens // unit_tokens))
    while shortest < longest:
        if fits(guess * unit_tokens):
            shortest = guess
        else:
            longest = guess - 1
        doubled = guess * 2 if longest >= guess * 2 and shortest == guess else 0
        guess = doubled or (shortest + longest + 1) // 2
    return shortest * unit_tokens


def excess_bytes(schedule: Schedule, budgets: Budgets) -> dict[Tier, int]:
    """By how much a simulated step passes each budget; tiers that it keeps are left out."""
    over = {tier: peak - budgets.of(tier) for tier, peak in schedule.peak_bytes.items()}
    return {tier: size for tier, size in over.items() if size > 0}


def _fitting(
    cost: StepCost, rates: Rates, budgets: Budgets, rules: Rules, search: Search
) -> Simulated | None:
    allowed = budgets
    for _ in range(_ROUNDS):
        solution = solve_swap(cost, rates, allowed, rules, search)
        if solution is None:
            return None
        schedule = simulate(cost, rates, solution.plan)
        over = excess_bytes(schedule, budgets)
        if not over:
            return Simulated(cost, solution, schedule)
        allowed = _less(allowed, over)
    return None


def _confirmed(
    cost: StepCost,
    rates: Rates,
    budgets: Budgets,
    rules: Rules,
    search: Search | None,
    tier: Tier,
    size_bytes: int,
) -> int | None:
    """As much of a tier, or somewhat more, as a plan takes that a simulation has confirmed."""

    def fits(size_bytes: int) -> bool:
        more = _more(budgets, tier, size_bytes)
        return _fitting(cost, rates, more, rules, search or Search()) is not None

    if fits(size_bytes):
        return size_bytes
    for round_number in range(_ROUNDS):
        less, size_bytes = size_bytes, size_bytes + (_GROWTH_BYTES << 2 * round_number)
        if fits(size_bytes):
            return _bisected(fits, less, size_bytes)
    return None


def _bisected(fits: Callable[[int], bool], less: int, enough: int) -> int:
    """Somewhat closer to the least that fits; `less` does not, and `enough` does."""
    while enough - less > max(_GROWTH_BYTES, enough // 32):
        middle = (less + enough) // 2
        less, enough = (less, middle) if fits(middle) else (middle, enough)
    return enough


def _less(budgets: Budgets, over: dict[Tier, int]) -> Budgets:
    return Budgets(
        device_bytes=max(0, budgets.device_bytes - over.get(Tier.DEVICE, 0)),
        host_bytes=max(0, budgets.host_bytes - over.get(Tier.HOST, 0)),
        ssd_bytes=max(0, budgets.ssd_bytes - over.get(Tier.SSD, 0)),
        in_flight_bytes=budgets.in_flight_bytes,
    )


def _more(budgets: Budgets, tier: Tier, size_bytes: int) -> Budgets:
    return replace(budgets, **{f"{tier}_bytes": budgets.of(tier) + size_bytes})
