"""Compute and the lanes as servers: each does one thing at a time, in the order in which it was
asked.

Scope: times. What is asked of whom is `transfers.py`'s and `simulation.py`'s business.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from planner.contracts import Lane
from planner.schedule.contracts import Span


@dataclass(slots=True)
class Compute:
    """What runs the model; `now_s` is where it stands."""

    now_s: float = 0.0
    busy_s: float = 0.0
    exposed_s: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(Lane, 0.0))
    spans: list[Span] = field(default_factory=list)

    def run(self, duration_s: float) -> None:
        """Compute for so long."""
        self.now_s += duration_s
        self.busy_s += duration_s

    def wait(self, lane: Lane, until_s: float) -> None:
        """Stand still until then; the time is the lane's, and exposed."""
        if until_s > self.now_s:
            self.exposed_s[lane] += until_s - self.now_s
            self.spans.append(Span(lane, f"waits for {lane}", self.now_s, until_s, is_wait=True))
            self.now_s = until_s

    def mark(self, name: str, start_s: float) -> None:
        """Show what ran from `start_s` until now as `name`."""
        self.spans.append(Span(None, name, start_s, self.now_s))


@dataclass(slots=True)
class LaneServer:
    """A lane that copies what it is given at once, or as soon as it is free."""

    lane: Lane
    bytes_per_s: float
    free_s: float = 0.0
    busy_s: float = 0.0
    moved_bytes: int = 0
    spans: list[Span] = field(default_factory=list)

    def copy(self, ready_s: float, size_bytes: int) -> float:
        """Copy what is ready then; returns when it is there."""
        start_s = max(self.free_s, ready_s)
        self.free_s = start_s + size_bytes / self.bytes_per_s
        self.busy_s += self.free_s - start_s
        self.moved_bytes += size_bytes
        self.spans.append(Span(self.lane, "copy", start_s, self.free_s, size_bytes))
        return self.free_s


@dataclass(slots=True, eq=False)
class QueuedCopy:
    """A copy that waits in its lane's queue, from which it may be dropped until it begins."""

    ready_s: float
    size_bytes: int
    done_s: float | None = None


@dataclass(slots=True)
class QueueingLane:
    """A lane whose copies can be dropped before they begin: copies begin no sooner than somebody
    asks how far it is.
    """

    server: LaneServer
    _queue: deque[QueuedCopy] = field(default_factory=deque)

    def submit(self, ready_s: float, size_bytes: int) -> QueuedCopy:
        """Queue a copy of what is ready then."""
        copy = QueuedCopy(ready_s, size_bytes)
        self._queue.append(copy)
        return copy

    def advance(self, now_s: float) -> None:
        """Begin what would have begun by now."""
        while self._queue and max(self.server.free_s, self._queue[0].ready_s) <= now_s:
            self._begin()

    def finish(self, copy: QueuedCopy) -> float:
        """When a copy is there, with all before it."""
        while copy.done_s is None:
            self._begin()
        return copy.done_s

    def drop(self, copy: QueuedCopy, now_s: float) -> bool:
        """Let it never begin; False when it has begun."""
        self.advance(now_s)
        if copy.done_s is not None:
            return False
        self._queue.remove(copy)
        return True

    def finish_all(self) -> None:
        """Begin all that is left."""
        while self._queue:
            self._begin()

    def _begin(self) -> None:
        copy = self._queue.popleft()
        copy.done_s = self.server.copy(copy.ready_s, copy.size_bytes)
