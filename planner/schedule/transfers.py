"""Parcels leave the device and come back, as the runtime moves them.

Scope: the rules of the runtime's `offload/transfers.py`, on a clock instead of on streams. Bytes
that are WRITING, or LANDING before they are asked for, are in flight, and never more than the
budget: when room is needed, compute waits for the oldest write. What is asked for while it is
WRITING is handed back as it is. Whenever something is asked for, what backward wants next begins to
come back: the last group first, within a group by turn.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from planner.contracts import Lane, Tier
from planner.schedule.lanes import Compute, LaneServer
from planner.schedule.memory import Memory
from planner.schedule.parcels import Parcel, State, Turn
from planner.schedule.staging import Staging


@dataclass(slots=True)
class Transfers:
    """One device's transfer engine. `limit_bytes`: of bytes in flight."""

    compute: Compute
    memory: Memory
    d2h: LaneServer
    h2d: LaneServer
    staging: Staging
    limit_bytes: int
    forwarded_bytes: int = 0
    peak_bytes: int = 0
    _flying: deque[Parcel] = field(default_factory=deque)
    _flying_bytes: int = 0
    _groups: list[list[Parcel]] = field(default_factory=lambda: [[]])
    _dropped: deque[Parcel] = field(default_factory=deque)
    _order: list[Parcel] = field(default_factory=list)
    _to_fetch: int = 0
    _to_land: int = 0

    # ---- forward ----

    def save(self, size_bytes: int, tier: Tier, turn: Turn, *, is_counted: bool) -> Parcel:
        """Begin to copy bytes to the host; `is_counted`: they are held for this alone."""
        self.sweep()
        while self._flying and self._flying_bytes + size_bytes > self.limit_bytes:
            self._retire(self._flying[0])
        if tier is Tier.SSD:
            self.staging.make_room(size_bytes)
        written_s = self.d2h.copy(self.compute.now_s, size_bytes)
        group = len(self._groups) - 1
        parcel = Parcel(group, turn, tier, size_bytes, written_s, is_counted)
        self._groups[-1].append(parcel)
        self._fly(parcel)
        if size_bytes > self.limit_bytes:
            self._retire(parcel)
        if tier is Tier.SSD:
            self.staging.keep(parcel)
        else:
            self.memory.take(Tier.HOST, self.compute.now_s, size_bytes)
        return parcel

    def close_group(self) -> None:
        """A layer's forward is over, and with it what lived with the layer."""
        for parcel in self._groups[-1]:
            if parcel.state is State.WRITING and not parcel.is_counted:
                parcel.is_counted = True
                self.memory.take(Tier.DEVICE, self.compute.now_s, parcel.size_bytes)
        self._groups.append([])

    def turn_round(self) -> None:
        """Backward begins."""
        for group in reversed(self._groups):
            self._order += sorted(group, key=lambda parcel: parcel.turn)
        for index, parcel in enumerate(self._order):
            parcel.place = index

    # ---- backward ----

    def load(self, parcel: Parcel) -> None:
        """Have a parcel's tensors on the device; from here on they live with the layer."""
        self.sweep()
        if parcel.state is State.WRITING:
            self.forwarded_bytes += parcel.size_bytes
            self._uncount(parcel)
        else:
            if parcel.state is State.STORED:
                self.staging.bring(parcel)
                self._land(parcel)
            self._take_landing(parcel)
        self._prefetch(parcel.place + 1)

    def drop(self, parcel: Parcel) -> None:
        """Nobody wants the parcel any more; it is forgotten with the next call."""
        self._dropped.append(parcel)

    def sweep(self) -> None:
        """Forget what was dropped, and take up what has arrived."""
        while self._dropped:
            self._free(self._dropped.popleft())
        self.staging.poll()
        arrived = self.staging.arrived
        while arrived and self._land_ahead(arrived[0]):
            arrived.popleft()

    # ---- inside ----

    def _fly(self, parcel: Parcel) -> None:
        self._flying.append(parcel)
        self._flying_bytes += parcel.size_bytes
        if parcel.size_bytes <= self.limit_bytes:
            self.peak_bytes = max(self.peak_bytes, self._flying_bytes)

    def _leave(self, parcel: Parcel) -> None:
        self._flying.remove(parcel)
        self._flying_bytes -= parcel.size_bytes

    def _retire(self, parcel: Parcel) -> None:
        """WRITING to STORED: compute waits for the copy, and the tensors are let go."""
        assert parcel.state is State.WRITING
        self._leave(parcel)
        parcel.state = State.STORED
        self.compute.wait(Lane.D2H, parcel.written_s)
        self._uncount(parcel)

    def _uncount(self, parcel: Parcel) -> None:
        if parcel.is_counted:
            parcel.is_counted = False
            self.memory.give_back(Tier.DEVICE, self.compute.now_s, parcel.size_bytes)

    def _land(self, parcel: Parcel) -> None:
        ready_s = max(self.compute.now_s, parcel.written_s)
        parcel.landed_s = self.h2d.copy(ready_s, parcel.size_bytes)
        parcel.state = State.LANDING
        self.memory.take(Tier.DEVICE, self.compute.now_s, parcel.size_bytes)

    def _take_landing(self, parcel: Parcel) -> None:
        if parcel in self._flying:
            self._leave(parcel)
        parcel.state = State.STORED
        self.compute.wait(Lane.H2D, parcel.landed_s)
        self.memory.give_back(Tier.DEVICE, self.compute.now_s, parcel.size_bytes)

    def _land_ahead(self, parcel: Parcel) -> bool:
        if parcel.state is State.STORED and parcel.is_ready:
            if self._flying_bytes + parcel.size_bytes > self.limit_bytes:
                return False
            self._land(parcel)
            self._fly(parcel)
        return True

    def _prefetch(self, first: int) -> None:
        """What is wanted from the place `first` on."""
        order = self._order
        self._to_fetch, self._to_land = max(self._to_fetch, first), max(self._to_land, first)
        while self._to_fetch < len(order) and self._is_fetched(order[self._to_fetch]):
            self._to_fetch += 1
        while self._to_land < self._to_fetch and self._land_ahead(order[self._to_land]):
            self._to_land += 1

    def _is_fetched(self, parcel: Parcel) -> bool:
        return parcel.state is not State.STORED or self.staging.fetch(parcel)

    def _free(self, parcel: Parcel) -> None:
        if parcel.state is State.WRITING:
            self._retire(parcel)
        parcel.state = State.GONE
        if parcel.tier is Tier.SSD:
            self.staging.release(parcel)
        else:
            self.memory.give_back(Tier.HOST, self.compute.now_s, parcel.size_bytes)
