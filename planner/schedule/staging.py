"""The host's memory as the way to the SSD and back.

Scope: parcels of the SSD tier, as the runtime's `offload/host_space.py` treats them. They are
written as soon as they are on the host; what is written leaves it when room is needed, not before;
reads come ahead as far as there is room. Only what is needed now waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from planner.contracts import Lane, Tier
from planner.schedule.lanes import Compute, LaneServer, QueueingLane
from planner.schedule.memory import Memory
from planner.schedule.parcels import Parcel


@dataclass(slots=True)
class Staging:
    """`limit_bytes`: what parcels of the SSD tier may take of the host; one parcel always may.
    `arrived`: fetched ahead, and not taken up yet.
    """

    compute: Compute
    memory: Memory
    writes: QueueingLane
    reads: LaneServer
    limit_bytes: int
    arrived: deque[Parcel] = field(default_factory=deque)
    _here: dict[Parcel, None] = field(default_factory=dict)
    _here_bytes: int = 0
    _reading: deque[Parcel] = field(default_factory=deque)

    def make_room(self, size_bytes: int) -> None:
        """Wait until so many bytes have room."""
        while not self._has_room(size_bytes):
            self.writes.advance(self.compute.now_s)
            clean = [parcel for parcel in self._here if self._is_clean(parcel)]
            if clean:
                self._evict(min(clean, key=lambda parcel: parcel.group))
            elif dirty := [p for p in self._here if p.copy is not None and p.fetched_s is None]:
                copy = dirty[0].copy
                assert copy is not None
                self.compute.wait(Lane.SSD_WRITE, self.writes.finish(copy))
            else:
                self.compute.wait(Lane.SSD_READ, min(p.fetched_s or 0.0 for p in self._reading))
                self.poll()

    def keep(self, parcel: Parcel) -> None:
        """Bytes that arrive at `written_s`, for which there is room; their write begins then."""
        self._enter(parcel)
        parcel.copy = self.writes.submit(parcel.written_s, parcel.size_bytes)
        parcel.is_on_disk = True
        self.memory.take(Tier.SSD, self.compute.now_s, parcel.size_bytes)

    def fetch(self, parcel: Parcel) -> bool:
        """Begin to read a parcel, if it isn't here; False: there is no room now."""
        if parcel.is_here:
            return True
        if not self._has_room(parcel.size_bytes):
            return False
        self._enter(parcel)
        assert parcel.copy is not None
        ready_s = max(self.compute.now_s, self.writes.finish(parcel.copy))
        parcel.fetched_s = self.reads.copy(ready_s, parcel.size_bytes)
        self._reading.append(parcel)
        return True

    def bring(self, parcel: Parcel) -> None:
        """Compute waits until a parcel is here."""
        if not parcel.is_here:
            self.make_room(parcel.size_bytes)
            self.fetch(parcel)
        if parcel.fetched_s is not None:
            self.compute.wait(Lane.SSD_READ, parcel.fetched_s)
            self.poll()

    def release(self, parcel: Parcel) -> None:
        """Nobody wants the parcel any more; a write that has not begun is dropped."""
        if parcel in self._here:
            self._leave(parcel)
        if parcel in self._reading:
            self._reading.remove(parcel)
        if parcel.copy is not None:
            self.writes.drop(parcel.copy, self.compute.now_s)
        if parcel.is_on_disk:
            self.memory.give_back(Tier.SSD, self.compute.now_s, parcel.size_bytes)
            parcel.is_on_disk = False

    def poll(self) -> None:
        """Take up reads that are over."""
        while self._reading and (self._reading[0].fetched_s or 0.0) <= self.compute.now_s:
            parcel = self._reading.popleft()
            parcel.fetched_s = None
            self.arrived.append(parcel)

    def _has_room(self, size_bytes: int) -> bool:
        return not self._here or self._here_bytes + size_bytes <= self.limit_bytes

    def _is_clean(self, parcel: Parcel) -> bool:
        done_s = None if parcel.copy is None else parcel.copy.done_s
        return parcel.fetched_s is None and done_s is not None and done_s <= self.compute.now_s

    def _enter(self, parcel: Parcel) -> None:
        parcel.is_here = True
        self._here[parcel] = None
        self._here_bytes += parcel.size_bytes
        self.memory.take(Tier.HOST, self.compute.now_s, parcel.size_bytes)

    def _evict(self, parcel: Parcel) -> None:
        self._leave(parcel)

    def _leave(self, parcel: Parcel) -> None:
        parcel.is_here = False
        del self._here[parcel]
        self._here_bytes -= parcel.size_bytes
        self.memory.give_back(Tier.HOST, self.compute.now_s, parcel.size_bytes)
