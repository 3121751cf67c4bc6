"""How many GPUs share a sequence, where that was not said.

Scope: which degrees are planned, and which of their plans is taken. With fewer GPUs to a sequence
others train on sequences of their own, so degrees are compared by seconds and bytes of a token.

The largest degree is planned first. A smaller one has more tokens on each GPU, and as much memory
and as fast lanes: what it recomputes and waits for, a token, is no less. What it may save is the
exchange of heads for tokens, and its share of what comes once a step (the optimizer, ZeRO's
traffic). Where that cannot be more than the tolerance, it is not planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from memo.planning.choosing import Case, Chosen, choose
from memo.planning.collectives import fewest_heads
from memo.planning.costing import local_tokens
from memo.planning.request import PlanRequest
from planner.swap.costs import step_cost
from planner.swap.preference import Effort, may_be_preferred, preferred


@dataclass(frozen=True, slots=True)
class _Planned:
    case: Case
    chosen: Chosen

    @property
    def effort(self) -> Effort:
        """Of a token."""
        step, tokens = self.chosen.effort, _step_tokens(self.case.request)
        return Effort(step.seconds / tokens, step.written_bytes / tokens, step.least_s / tokens)


def degrees(request: PlanRequest) -> tuple[int, ...]:
    """The divisors of the GPUs, from the largest on, that are no more than there are query heads,
    which ranks exchange, or tokens.
    """
    heads = fewest_heads(request.config)
    most = min(request.ranks, request.tokens, heads)
    return tuple(n for n in range(most, 0, -1) if request.ranks % n == 0)


def best_case(request: PlanRequest) -> Case:
    """The request with its degree, chosen where `compare_degrees` says so; what was compared stands
    in the case's notes.

    Raises:
        MemoError: for a model that cannot be traced.
        SolverError: when no solver is installed, or it failed.
    """
    if not request.compare_degrees or request.ranks == 1:
        return Case(request)
    most, *others = degrees(request)
    largest = _case(request, most)
    if any(layer.reason is not None for layer in largest.trace().layers):
        return _alone(request)
    chosen = choose(largest)
    if chosen is None:
        return largest
    planned = [_Planned(largest, chosen)]
    for degree in others:
        if _may_win(planned[0], planned, degree):
            case = _case(request, degree)
            found = choose(case)
            if found is None:
                break  # a smaller degree has more tokens on each GPU, and no more memory
            planned.append(_Planned(case, found))
    best = preferred(planned, lambda one: one.effort, request.step_tolerance).case
    best.largest = largest
    best.notes = tuple(_compared(planned, best, most, request))
    return best


def largest_instead(case: Case) -> Case | None:
    """The case of the largest degree, for where the one that was chosen has no layout that fits;
    its notes say so once this is called. None: there is no other.
    """
    largest = case.largest
    if largest is None or largest is case:
        return None
    own, most = (one.request.sequence_parallel for one in (case, largest))
    note = (
        f"sequence_parallel {most} was chosen: of {own}, which was preferred, no layout of the "
        "device's memory was found that fits"
    )
    largest.notes = (note, *_limit(most, case.request))
    return largest


def _case(request: PlanRequest, degree: int) -> Case:
    return Case(replace(request, sequence_parallel=degree))


def _alone(request: PlanRequest) -> Case:
    case = _case(request, 1)
    case.notes = (
        "every GPU has sequences for itself (sequence_parallel 1 was chosen): layers that run "
        "whole, as some of this model do, cannot share one",
    )
    return case


def _may_win(largest: _Planned, planned: list[_Planned], degree: int) -> bool:
    """Whether a smaller degree may be preferred to the best that is known."""
    known = min((one.effort for one in planned), key=lambda effort: effort.seconds)
    tolerance = largest.case.request.step_tolerance
    return may_be_preferred(_bound_s(largest), known, tolerance)


def _bound_s(largest: _Planned) -> float:
    """Of a token: what no smaller degree can beat."""
    request, chosen = largest.case.request, largest.chosen
    bare = step_cost(chosen.trace, request.node.hardware)
    core_s = sum(layer.forward.core_s + layer.backward.core_s for layer in bare.layers)
    lost_s = chosen.effort.least_s - chosen.found.cost.compute_s
    least_s = core_s * _even_heads(request) + (bare.compute_s - core_s) * _even_tokens(request)
    return (least_s + max(0.0, lost_s)) / _step_tokens(request)


def _even_heads(request: PlanRequest) -> float:
    """Of attention's time on the rank with the most heads: what even shares would take."""
    heads = fewest_heads(request.config)
    most = -(-heads // request.sequence_parallel)
    return heads / (most * request.sequence_parallel)


def _even_tokens(request: PlanRequest) -> float:
    """The same of all else, on the rank with the most tokens."""
    return request.tokens / (local_tokens(request) * request.sequence_parallel)


def _step_tokens(request: PlanRequest) -> int:
    return request.tokens * request.batch * (request.ranks // request.sequence_parallel)


def _compared(
    planned: list[_Planned], best: Case, most: int, request: PlanRequest
) -> Iterator[str]:
    """Which degree was chosen, and why."""
    own = best.request.sequence_parallel
    speeds = ", ".join(
        f"{one.case.request.sequence_parallel} GPUs {1 / one.effort.seconds:,.0f} tokens/s"
        for one in planned
    )
    tried = {one.case.request.sequence_parallel for one in planned}
    skipped = [str(n) for n in degrees(request) if n not in tried]
    text = (
        f"sequence_parallel {own} was chosen; of those that share a sequence, {speeds} (compared "
        "before layouts, with nothing stored of what ranks exchange)"
    )
    if skipped:
        text += (
            f"; {', '.join(skipped)} cannot be faster by more than {request.step_tolerance:.1%}, "
            "or do not fit"
        )
    yield text
    yield from _limit(most, request)


def _limit(most: int, request: PlanRequest) -> Iterator[str]:
    if most < request.ranks:
        yield (
            f"a sequence is shared by {most} GPUs at most: more than there are heads "
            "are planned only when sequence_parallel says so"
        )
