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
    """What a stretch of time was: a lane's copy, a lane that waits, compute that waits for a
    lane.
    """

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
    """A stretch of one lane's time, in seconds since the tracing began."""

    lane: Lane
    work: Work
    start_s: float
    stop_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Pending:
    lane: Lane
    work: Work
    start: Event
    stop: Event
    size_bytes: int

    @property
    def ends(self) -> tuple[Event, Event]:
        return self.start, self.stop


@dataclass(slots=True)
class Meter:
    """Counts by lane; `spans` are kept while there is an `origin`."""

    counts: dict[Lane, LaneCount] = field(
        default_factory=lambda: {lane: LaneCount() for lane in Lane}
    )
    forwarded_bytes: int = 0
    in_flight_peak_bytes: int = 0
    spans: list[Span] = field(default_factory=list)
    origin: Event | None = None
    _pending: deque[_Pending] = field(default_factory=deque)

    def measure(
        self, lane: Lane, work: Work, start: Event, stop: Event, size_bytes: int = 0
    ) -> None:
        """Count what lies between two events, once both are done."""
        self._pending.append(_Pending(lane, work, start, stop, size_bytes))
        self.settle()

    def settle(self) -> None:
        """Count what is done, in the order in which it was begun."""
        while self._pending and all(e.is_done() for e in self._pending[0].ends):
            item = self._pending.popleft()
            seconds = item.stop.seconds_since(item.start)
            self.counts[item.lane].add(item.work, seconds, item.size_bytes)
            if self.origin is not None:
                start_s = item.start.seconds_since(self.origin)
                self.spans.append(
                    Span(item.lane, item.work, start_s, start_s + seconds, item.size_bytes)
                )

    def reset(self) -> None:
        """Start the counts anew; spans stay."""
        self.settle()
        self.counts = {lane: LaneCount() for lane in Lane}
        self.forwarded_bytes = self.in_flight_peak_bytes = 0
