"""What the lanes did and who waited for whom, measured between events.

Scope: numbers and spans. Events are read when they are done, long after they were recorded, so that
nothing here makes the host wait.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from offload.contracts import Lane
from offload.streams import Event


class Work(StrEnum):
    """What a stretch of a lane's time was: a copy, waiting for others, compute waiting for it."""

    COPY = "copy"
    LANE_WAIT = "lane waits"
    EXPOSED = "compute waits"


@dataclass(slots=True)
class LaneCount:
    """One lane since the last reset: copies and their bytes, seconds in which it copied, waited
    for others, and in which compute waited for it (exposed time).
    """

    copies: int = 0
    moved_bytes: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    exposed_s: float = 0.0

    def add(self, work: Work, seconds: float, size_bytes: int) -> None:
        match work:
            case Work.COPY:
                self.copies += 1
                self.moved_bytes += size_bytes
                self.busy_s += seconds
            case Work.LANE_WAIT:
                self.waited_s += seconds
            case Work.EXPOSED:
                self.exposed_s += seconds


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in seconds since the tracing began. `lane` None: compute ran `name`."""

    lane: Lane | None
    name: str
    start_s: float
    stop_s: float
    size_bytes: int

    @property
    def is_of_compute(self) -> bool:
        """Whether compute spent it, running a layer or waiting."""
        return self.lane is None or self.name == Work.EXPOSED


@dataclass(frozen=True, slots=True)
class _Pending:
    lane: Lane | None
    name: str
    start: Event
    stop: Event
    size_bytes: int

    @property
    def is_done(self) -> bool:
        return self.start.is_done() and self.stop.is_done()


@dataclass(slots=True)
class Meter:
    """Counts by lane; `spans` are kept while there is an `origin`, which `time.perf_counter` showed
    as `origin_s`. `spared_bytes` were dropped before they were written to a disk.
    """

    counts: dict[Lane, LaneCount] = field(
        default_factory=lambda: {lane: LaneCount() for lane in Lane}
    )
    forwarded_bytes: int = 0
    spared_bytes: int = 0
    in_flight_peak_bytes: int = 0
    spans: list[Span] = field(default_factory=list)
    origin: Event | None = None
    origin_s: float = 0.0
    _passed_s: dict[Lane, float] = field(default_factory=dict)
    _pending: deque[_Pending] = field(default_factory=deque)

    def measure(
        self, lane: Lane, work: Work, start: Event, stop: Event, size_bytes: int = 0
    ) -> None:
        """Count what lies between two events, once both are done."""
        self._pending.append(_Pending(lane, work, start, stop, size_bytes))

    def mark(self, name: str, start: Event, stop: Event) -> None:
        """Show what compute did between two events."""
        self._pending.append(_Pending(None, name, start, stop, 0))

    def transferred(
        self, lane: Lane, start_s: float, stop_s: float, size_bytes: int, *, waited_s: float
    ) -> None:
        """A transfer with a disk, by `time.perf_counter`, before which its lane waited. Several run
        at a time: busy is a lane while any does.
        """
        self.counts[lane].add(Work.LANE_WAIT, waited_s, 0)
        self.counts[lane].add(Work.COPY, 0.0, size_bytes)
        begun_s = max(start_s, self._passed_s.get(lane, start_s))
        self._passed_s[lane] = max(stop_s, begun_s)
        self.counts[lane].busy_s += max(stop_s - begun_s, 0.0)
        self._draw(lane, Work.COPY, start_s, stop_s, size_bytes)

    def exposed(self, lane: Lane, start_s: float, stop_s: float) -> None:
        """Compute's thread waited for a disk."""
        self.counts[lane].add(Work.EXPOSED, stop_s - start_s, 0)
        self._draw(lane, Work.EXPOSED, start_s, stop_s, 0)

    def _draw(self, lane: Lane, name: str, start_s: float, stop_s: float, size_bytes: int) -> None:
        if self.origin is not None and start_s >= self.origin_s:
            origin_s = self.origin_s
            self.spans.append(Span(lane, name, start_s - origin_s, stop_s - origin_s, size_bytes))

    def settle(self) -> None:
        """Count what is done, in the order in which it was begun."""
        while self._pending and self._pending[0].is_done:
            item = self._pending.popleft()
            seconds = item.stop.seconds_since(item.start)
            if item.lane is not None:
                self.counts[item.lane].add(Work(item.name), seconds, item.size_bytes)
            if self.origin is not None:
                start_s = item.start.seconds_since(self.origin)
                stop_s = start_s + seconds
                self.spans.append(Span(item.lane, item.name, start_s, stop_s, item.size_bytes))

    def reset(self) -> None:
        """Start the counts anew; spans stay."""
        self.settle()
        self.counts = {lane: LaneCount() for lane in Lane}
        self.forwarded_bytes = self.spared_bytes = self.in_flight_peak_bytes = 0
