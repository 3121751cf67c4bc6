"""The longest sequence that a case can train within a memory limit, by bisection.

Every probe is a real step in a child process under a real limit (`memo.measure.limit_memory`), so
there is no model of memory in here. It assumes only that what fits at a length fits at less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.contracts import Outcome, Sample

Probe = Callable[[int], Sample]


@dataclass(frozen=True, kw_only=True, slots=True)
class Longest:
    """The longest that fitted, and the shortest that didn't (None: the search ended before)."""

    case: str
    fits_tokens: int
    fails_tokens: int | None
    step_s: float | None
    error: str = ""


def longest(
    case: str, probe: Probe, *, start_tokens: int, step_tokens: int, max_tokens: int
) -> Longest:
    """Double from `start_tokens` until it no longer fits, then halve the gap to `step_tokens`.

    Lengths are multiples of `step_tokens`, at most `max_tokens`. A probe that fails for another
    reason than memory ends the search and is named in `error`.
    """
    fits = 0
    fails: int | None = None
    step_s: float | None = None
    tokens = max(_down(start_tokens, step_tokens), step_tokens)
    while True:
        sample = probe(tokens)
        if sample.outcome is Outcome.FAILED:
            return _longest(case, fits, fails, step_s, sample.message)
        if sample.outcome is Outcome.OK:
            fits, step_s = tokens, sample.step_s[0]
        else:
            fails = tokens
        following = _next_tokens(fits, fails, step_tokens, max_tokens)
        if following is None:
            return _longest(case, fits, fails, step_s, "")
        tokens = following


def _next_tokens(fits: int, fails: int | None, step: int, most: int) -> int | None:
    if fails is None:
        doubled = min(2 * fits, _down(most, step))
        return doubled if doubled > fits else None
    if fails - fits <= step:
        return None
    return max(_down((fits + fails) // 2, step), fits + step)


def _down(tokens: int, step: int) -> int:
    return tokens // step * step


def _longest(case: str, fits: int, fails: int | None, step_s: float | None, error: str) -> Longest:
    return Longest(case=case, fits_tokens=fits, fails_tokens=fails, step_s=step_s, error=error)
