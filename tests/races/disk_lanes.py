"""The lanes of the double of a disk: bags of transfers that no order binds.

Scope: one transfer, and a lane that runs them. What is lent, and to whom, is `disk.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from random import Random

from offload.contracts import SpillError, TransferError
from offload.streams import Event
from tests.races.clocks import Clock, Region
from tests.races.double import DoubleStreams
from tests.races.queues import Copy, DoubleEvent


class _State(Enum):
    QUEUED = auto()
    BEGUN = auto()  # as it says; its bytes move as late as they may
    OVER = auto()
    CANCELLED = auto()


class DoubleTransfer:
    """See `offload.disk.DiskTransfer`. It keeps neither end. Its accesses are known from when it is
    asked for, and withdrawn when it is cancelled.
    """

    def __init__(
        self, lane: DiskLane, target: Region, source: Region, after: Sequence[Event]
    ) -> None:
        self.error: TransferError | None = None
        self.span_s: tuple[float, float] | None = None
        self.waited_s = 0.0
        self._lane, self._state = lane, _State.QUEUED
        self._after = [event for event in after if isinstance(event, DoubleEvent)]
        assert len(self._after) == len(after)
        self._copy = Copy(target, source, number=1)
        self.clock = Clock(lane.next_name(), work=1)
        for known in (lane.streams.host.known, *(event.known for event in self._after)):
            self.clock.learn(known)
        self._touch()

    @property
    def has_failed(self) -> bool:
        """Whether it will never bring its bytes; the host does not learn of it here."""
        return self.error is not None or self._state is _State.CANCELLED

    # ---- the protocol ----

    def is_done(self) -> bool:
        self._lane.streams.turn()
        if self._state is _State.OVER:
            self._lane.streams.host_saw(self.clock.known)
        return self._state in (_State.OVER, _State.CANCELLED)

    def settle(self) -> None:
        self._lane.streams.turn()
        self._lane.settled += 1
        if self._state in (_State.QUEUED, _State.BEGUN):
            self._lane.run(self)
        if self._state is _State.OVER:
            self._lane.streams.host_learns(self.clock.known)

    def cancel(self) -> bool:
        self._lane.streams.turn()
        if self._state is not _State.QUEUED:
            return False
        if self._lane.random.random() < self._lane.haste:
            self._state = _State.BEGUN
            return False
        self._state = _State.CANCELLED
        self._lane.take_out(self)
        for end in (self._copy.target, self._copy.source):
            end.withdraw(self.clock)
        return True

    # ---- what the lane does ----

    def run(self) -> None:
        streams = self._lane.streams
        try:
            self._wait()
            started_s = streams.step_s()
            try:
                self._lane.begin(self._copy.target.size_bytes)
                self._copy.move()
            finally:
                self.span_s = started_s, streams.step_s()
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for it
            self._copy.target.poison()
            self.error = _told(error)
        self._state = _State.OVER

    def _wait(self) -> None:
        for event in self._after:
            event.force()
            if event.error is not None:
                raise event.error

    def _touch(self) -> None:
        for end, is_write in ((self._copy.source, False), (self._copy.target, True)):
            access = end.access(self.clock, is_write=is_write, copy=self._copy, is_sure=False)
            self._lane.streams.note(end, access, self.clock)


def _told(error: Exception) -> TransferError:
    if isinstance(error, TransferError):
        return error
    told = TransferError(f"a copy between tiers failed: {error}")
    told.__cause__ = error
    return told


class DiskLane:
    """See `tests.races.queues.Queue`. `haste`: the chance that a transfer has begun when it is
    cancelled. `ran`, `ran_bytes`: what began; `settled`: how often the host waited for one.
    """

    def __init__(self, name: str, streams: DoubleStreams, random: Random) -> None:
        self.name, self.streams, self.random = name, streams, random
        self.haste = random.choice((0.0, 0.5, 1.0))
        self.clock = Clock(name)
        self.ran = self.ran_bytes = self.settled = 0
        self._faults: dict[int, SpillError] = {}
        self._bag: list[DoubleTransfer] = []
        self._made = 0

    @property
    def is_idle(self) -> bool:
        return not self._bag

    def step(self) -> None:
        self.run(self.random.choice(self._bag))

    def run(self, transfer: DoubleTransfer) -> None:
        """This one, with what it waits for, and no other."""
        self.take_out(transfer)
        transfer.run()
        self.clock.learn(transfer.clock.known)

    def put(self, target: Region, source: Region, after: Sequence[Event]) -> DoubleTransfer:
        transfer = DoubleTransfer(self, target, source, after)
        self._bag.append(transfer)
        return transfer

    def take_out(self, transfer: DoubleTransfer) -> None:
        self._bag.remove(transfer)

    def fail(self, number: int, error: SpillError) -> None:
        """Let the `number`-th transfer that begins from here on (1: the next one) fail."""
        if number < 1:
            raise ValueError(f"number={number}: transfers are counted from 1")
        self._faults[self.ran + number] = error

    def begin(self, size_bytes: int) -> None:
        """Count a transfer; raises the fault that was planted for it."""
        self.ran += 1
        self.ran_bytes += size_bytes
        fault = self._faults.pop(self.ran, None)
        if fault is not None:
            raise fault

    def next_name(self) -> str:
        """Of a transfer: a clock is its own."""
        self._made += 1
        return f"{self.name} {self._made}"
