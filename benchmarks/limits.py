"""The longest sequence that a case can train within a memory limit, by bisection.

Every probe is a real step in a child process under a real limit (`memo.measure.limit_memory`, or a
card's memory), so no model of memory decides what fits. It is assumed only that what fits at a
length fits at less. Where probes are dear, a guess may say which length to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.contracts import Outcome, Sample

Probe = Callable[[int], Sample]
Guess = Callable[[Sequence[Sample]], int | None]
"""The longest that will fit, told from those that did; None: no telling yet."""

_RESOLUTION = 16
"""With a guess, the gap that is left is at most this part of the length, or the step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Longest:
    """The longest that fitted, and the shortest that didn't (None: the search ended before).

    Where a host's memory is accounted for, `host_tokens` is the longest that lies within it (None:
    nothing is held there).
    """

    case: str
    fits_tokens: int
    fails_tokens: int | None
    step_s: float | None
    error: str = ""
    host_tokens: int | None = None

    @property
    def trains_tokens(self) -> int:
        """The longest that device and host allow."""
        return min(
            self.fits_tokens, self.fits_tokens if self.host_tokens is None else self.host_tokens
        )

    @property
    def bound(self) -> str:
        """Which memory ends first."""
        return "device" if self.trains_tokens == self.fits_tokens else "host"


def longest(
    case: str,
    probe: Probe,
    *,
    start_tokens: int,
    step_tokens: int,
    max_tokens: int,
    guess: Guess | None = None,
) -> Longest:
    """Double from `start_tokens` until it no longer fits, then halve the gap to `step_tokens`; a
    `guess` is taken instead of either where it lies inside.

    Lengths are multiples of `step_tokens`, at most `max_tokens`. A probe that fails for another
    reason than memory, or is skipped, ends the search and is named in `error`.
    """
    search = _Search(step_tokens, max_tokens, guess)
    tokens: int | None = max(_down(start_tokens, step_tokens), step_tokens)
    error = ""
    while tokens is not None and not error:
        sample = probe(tokens)
        if sample.outcome in (Outcome.FAILED, Outcome.SKIPPED):
            error = sample.message
        elif sample.outcome is Outcome.OK:
            search.fits = tokens
            search.fitting.append(sample)
        else:
            search.fails = tokens
        tokens = search.next_tokens()
    return search.result(case, error)


@dataclass(slots=True)
class _Search:
    """What is known so far, and what to try next."""

    step: int
    most: int
    guess: Guess | None
    fitting: list[Sample] = field(default_factory=list)
    fits: int = 0
    fails: int | None = None

    def next_tokens(self) -> int | None:
        if self.fails is not None and self.fails - self.fits <= self._gap:
            return None
        most = _down(self.most, self.step)
        above = most + self.step if self.fails is None else self.fails
        aim = self._guessed(above)
        if aim is None and self.fails is None:
            aim = min(2 * self.fits, most)
        elif aim is None:
            aim = max(_down((self.fits + above) // 2, self.step), self.fits + self.step)
        return aim if aim > self.fits else None

    @property
    def _gap(self) -> int:
        return self.step if self.guess is None else max(self.step, self.fits // _RESOLUTION)

    def _guessed(self, above: int) -> int | None:
        """A guess that tells more than the middle would; one just above what fits is tried a gap
        further on, where it is proved wrong or right.
        """
        found = self.guess(self.fitting) if self.guess else None
        if found is None:
            return None
        aim = max(_down(found, self.step), _down(self.fits + self._gap, self.step))
        return aim if self.fits < aim < above else None

    def result(self, case: str, error: str) -> Longest:
        step_s = self.fitting[-1].step_s[0] if self.fitting else None
        return Longest(
            case=case,
            fits_tokens=self.fits,
            fails_tokens=self.fails,
            step_s=step_s,
            error=error,
        )


def guess_from(fitting: Sequence[Sample]) -> int | None:
    """Where the peaks of the last two would meet the card's memory on a straight line, 3% less."""
    if len(fitting) < 2:
        return None
    (near, far), capacity_bytes = fitting[-2:], fitting[-1].capacity_bytes
    if near.allocated_bytes is None or far.allocated_bytes is None or capacity_bytes is None:
        return None
    grown_bytes = far.allocated_bytes - near.allocated_bytes
    if grown_bytes <= 0:
        return None
    slope = (far.tokens - near.tokens) / grown_bytes
    return int(0.97 * (far.tokens + (capacity_bytes - far.allocated_bytes) * slope))


def _down(tokens: int, step: int) -> int:
    return tokens // step * step
