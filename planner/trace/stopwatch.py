"""Timing a step: the seconds of every phase, instead of its operations and allocations.

Scope: `Stopwatch`, which is told what runs as a `Recorder` is, and notes the time when that
changes. It sees no operation, so that it costs none of their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from torch import Tensor

from planner.trace.contracts import Pass, Phase, Segment
from planner.trace.recorder import Storage, Tape

T = TypeVar("T")


def _seconds(start_s: float, end_s: float) -> float:
    return end_s - start_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """How time is noted, and told later. Beside an accelerator a moment is an event in the order of
    its work: to wait for it at every change would let it idle while the next work is submitted.

    Args:
        moment: notes that now.
        between: the seconds from one moment to a later one.
        settle: called before any is told; waits for the accelerator.
    """

    moment: Callable[[], Any] = perf_counter
    between: Callable[[Any, Any], float] = _seconds
    settle: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class _Lap:
    phase: Phase
    times: int
    start: Any
    end: Any


@dataclass(slots=True)
class Stopwatch:
    """`seconds` by phase; of tiles that repeat, one counts for those that it stands for."""

    clock: Clock = field(default_factory=Clock)
    tape: Tape = field(init=False, default_factory=Tape)
    _part: str = field(init=False, default="")
    _segment: Segment = field(init=False, default=Segment.EMBEDDING)
    _direction: Pass = field(init=False, default=Pass.FORWARD)
    _times: int = field(init=False, default=1)
    _laps: list[_Lap] = field(init=False, default_factory=list)
    _since: Any = field(init=False, default=None)

    @contextmanager
    def running(self) -> Iterator[None]:
        """What runs inside is timed."""
        self.clock.settle()
        self._since = self.clock.moment()
        try:
            yield
        finally:
            self._lap()
            self._since = None

    @property
    def seconds(self) -> dict[Phase, float]:
        """Of all that has run."""
        self.clock.settle()
        found: dict[Phase, float] = {}
        for lap in self._laps:
            passed_s = lap.times * self.clock.between(lap.start, lap.end)
            found[lap.phase] = found.get(lap.phase, 0.0) + passed_s
        return found

    @property
    def part(self) -> str:
        """Of the step, which runs now."""
        return self._part

    @part.setter
    def part(self, part: str) -> None:
        self._lap()
        self._part = part

    @property
    def segment(self) -> Segment:
        """Which runs now."""
        return self._segment

    @segment.setter
    def segment(self, segment: Segment) -> None:
        self._lap()
        self._segment = segment

    @property
    def direction(self) -> Pass:
        """In which it runs now."""
        return self._direction

    @direction.setter
    def direction(self, direction: Pass) -> None:
        self._lap()
        self._direction = direction

    @contextmanager
    def within(self, segment: Segment, direction: Pass) -> Iterator[None]:
        """What runs inside is of `segment` in `direction`."""
        before = self._segment, self._direction
        self.segment, self.direction = segment, direction
        try:
            yield
        finally:
            self.segment, self.direction = before

    def repeating(self, items: Sequence[T], times: int, *, index: int) -> Iterator[T]:
        """Iterate over `items`, of which the one at `index` stands for `times` more after it."""
        for position, item in enumerate(items):
            self._lap()
            self._times = 1 + times if position == index else 1
            try:
                yield item
            finally:
                self._lap()
                self._times = 1

    def know(self, tensors: object) -> None:
        """Tensors are not followed."""

    def storage_of(self, tensor: Tensor) -> Storage | None:
        """None: tensors are not followed."""

    def _lap(self) -> None:
        if self._since is None:
            return
        start, self._since = self._since, self.clock.moment()
        phase = self._part, self._segment, self._direction
        self._laps.append(_Lap(phase, self._times, start, self._since))
