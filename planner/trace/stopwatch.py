"""Timing a step: the seconds of every phase, instead of its operations and allocations.

Scope: `Stopwatch`, which is told what runs as a `Recorder` is, and asks the clock when that
changes. It sees no operation, so that it costs none of their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from torch import Tensor

from planner.trace.contracts import Pass, Phase, Segment
from planner.trace.recorder import Storage, Tape

T = TypeVar("T")


@dataclass(slots=True)
class Stopwatch:
    """`seconds` by phase; of tiles that repeat, one counts for those that it stands for.

    Args:
        settle: called before the clock is asked; beside an accelerator it waits for the device.
    """

    settle: Callable[[], object] = lambda: None
    clock: Callable[[], float] = perf_counter
    seconds: dict[Phase, float] = field(init=False, default_factory=dict)
    tape: Tape = field(init=False, default_factory=Tape)
    _part: str = field(init=False, default="")
    _segment: Segment = field(init=False, default=Segment.EMBEDDING)
    _direction: Pass = field(init=False, default=Pass.FORWARD)
    _times: int = field(init=False, default=1)
    _since_s: float | None = field(init=False, default=None)

    @contextmanager
    def running(self) -> Iterator[None]:
        """What runs inside is timed."""
        self.settle()
        self._since_s = self.clock()
        try:
            yield
        finally:
            self._lap()
            self._since_s = None

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
        if self._since_s is None:
            return
        self.settle()
        now_s = self.clock()
        phase = self._part, self._segment, self._direction
        passed_s = self._times * (now_s - self._since_s)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + passed_s
        self._since_s = now_s
