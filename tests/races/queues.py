"""A stream of the double: its queue, and the work in it.

Scope: events, waits and copies, and how each runs. When one runs, and what is a race, is
`double.py`'s; a disk's lanes, whose work has no order, are in `disk.py`.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from offload.contracts import TransferError
from offload.streams import Event
from tests.races.clocks import Clock, Region

if TYPE_CHECKING:
    from tests.races.double import DoubleStreams


class Queue(Protocol):
    """Work that the adversary may run a piece of."""

    @property
    def name(self) -> str: ...

    @property
    def clock(self) -> Clock:
        """What is known once all that it was given has run."""

    @property
    def is_idle(self) -> bool: ...

    def step(self) -> None:
        """Run one piece, if it is not idle."""


class Work(Protocol):
    """A piece of a stream's queue."""

    def run(self, stream: DoubleStream) -> None:
        """As the stream's first, with whatever it depends on in others."""


class DoubleEvent:
    """See `offload.streams.Event`. `known`: its stream's clock when it was recorded; `error`: of
    the first copy that failed since the stream's event before it.
    """

    def __init__(self, stream: DoubleStream) -> None:
        self.stream, self.known = stream, dict(stream.clock.known)
        self.passed_s: float | None = None
        self.error: Exception | None = None
        self._then: list[Callable[[], None]] = []

    def is_done(self) -> bool:
        return self.stream.streams.ask(self)

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, DoubleEvent)
        assert self.passed_s is not None, "the time of an event that is not done"
        assert earlier.passed_s is not None, "the time since an event that is not done"
        return self.passed_s - earlier.passed_s

    def synchronize(self) -> None:
        self.stream.streams.wait_for(self)
        if self.error is not None:
            raise self.error

    def force(self) -> None:
        """Run all that lies before it."""
        while self.passed_s is None:
            self.stream.step()

    def run(self, stream: DoubleStream) -> None:
        self.passed_s = stream.streams.step_s()
        self.error, stream.error = stream.error, None
        actions, self._then = self._then, []
        for action in actions:
            action()

    def then(self, action: Callable[[], None]) -> None:
        """Act at once when it is passed."""
        self._then.append(action)


def once_passed(events: Sequence[DoubleEvent], action: Callable[[], None]) -> None:
    """Act as soon as all are passed, which may be now; asks and forces nothing."""
    pending = [event for event in events if event.passed_s is None]
    if pending:
        pending[0].then(lambda: once_passed(pending[1:], action))
    else:
        action()


class Wait:
    """For an event of any stream. A failure before it is one of the waiting stream too."""

    def __init__(self, event: DoubleEvent) -> None:
        self.event = event

    def run(self, stream: DoubleStream) -> None:
        self.event.force()
        stream.error = stream.error or self.event.error


class Copy:
    """A copy that knows where its ends are and keeps neither. `number`: among its lane's."""

    def __init__(self, target: Region, source: Region, number: int) -> None:
        self.target, self.source, self.number = target, source, number
        self._is_spoiled = False
        self._held: list[torch.UntypedStorage | None] = []

    def spoil(self) -> None:
        """It raced: what it brings, or has brought, is NaN."""
        self._is_spoiled = True
        self.target.poison()

    def hold(self, owner: Clock) -> None:
        """A stream that does not run now was told to wait for this: what is freed for that stream
        from here on is not used again before.
        """
        ends = (self.target, self.source)
        self._held += [end.storage() for end in ends if owner in end.memory.owners]

    def run(self, stream: DoubleStream) -> None:
        try:
            stream.streams.begin_copy(stream)
            self.move()
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for it
            self.target.poison()
            stream.error = stream.error or error
        self._held.clear()

    def move(self) -> None:
        """The bytes, or NaN in their place."""
        target, source = self.target.storage(), self.source.storage()
        if self._is_spoiled or target is None or source is None:
            self.target.poison()
            return
        size_bytes = self.target.stop - self.target.start
        to, of = target.data_ptr() + self.target.start, source.data_ptr() + self.source.start
        ctypes.memmove(to, of, size_bytes)


class DoubleStream:
    """See `offload.streams.Stream`: a lane, or one of compute's."""

    def __init__(self, streams: DoubleStreams, name: str, *, is_lane: bool) -> None:
        self.streams, self.name, self.is_lane = streams, name, is_lane
        # Compute has a past: whoever waits for none of it has not waited.
        self.clock = Clock(name, work=0 if is_lane else 1)
        self.error: Exception | None = None
        self._queue: deque[Work] = deque()

    def record(self) -> DoubleEvent:
        self.streams.turn()
        event = DoubleEvent(self)
        self._queue.append(event)
        return event

    def wait(self, event: Event) -> None:
        assert isinstance(event, DoubleEvent)
        self.streams.turn()
        self.clock.learn(event.known)
        if self.is_lane or self is not self.streams.running:
            self._wait_later(event)
            return
        event.force()
        if event.error is not None:
            raise TransferError(f"a copy between tiers failed: {event.error}") from event.error

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert target.dtype == source.dtype == torch.uint8
        assert target.is_contiguous()
        assert source.is_contiguous()
        assert target.shape == source.shape
        self.streams.turn()
        self.clock.tick()
        copy = Copy(self.streams.region(target), self.streams.region(source), self.clock.work)
        self._queue.append(copy)
        self.streams.touch(copy.source, self.clock, is_write=False, copy=copy)
        self.streams.touch(copy.target, self.clock, is_write=True, copy=copy)

    def active(self) -> AbstractContextManager[None]:
        return self.streams.on(self)

    # ---- the queue ----

    @property
    def is_idle(self) -> bool:
        return not self._queue

    def step(self) -> None:
        self._queue.popleft().run(self)

    def drain(self) -> None:
        while self._queue:
            self.step()

    def _wait_later(self, event: DoubleEvent) -> None:
        self._queue.append(Wait(event))
        if not self.is_lane:
            self.streams.hold(event, self.clock)

    def hold(self, number: int, owner: Clock) -> None:
        """Let copies up to that number hold what belongs to `owner`."""
        for work in self._queue:
            if isinstance(work, Copy) and work.number <= number:
                work.hold(owner)
