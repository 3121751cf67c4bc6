"""The transfer engine of one device: parcels go to the host behind compute's back, and come back
before compute asks for them.

Scope: between device and host; which of the host's bytes are there, and which on a disk, is
`host_space.py`'s. A parcel is

- WRITING: its copy to the host was submitted, and its tensors are still held on the device. If it
  is asked for now, they are handed back as they are (*forwarded*);
- STORED: on the host, or beyond;
- LANDING: its copy back was submitted, and nobody has asked for it yet;
- GONE: dropped by its owner.

Bytes that are WRITING, or LANDING before they are asked for, are *in flight*, and never more than
the budget: when room is needed, compute waits for the oldest write and lets its tensors go. No call
makes the host wait beside a GPU: compute's stream waits, and memory is given back in that stream's
order. The default budget, twice the largest group, is MEMO's two rounding buffers.

Parcels come back in the order in which backward wants them (`groups.py`). Those that lie on a disk
come to the host ahead of that, as far as there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from offload.budget import ROUNDING_BUFFERS, Budget
from offload.contracts import INPLACE, Lane, MemoError, Tier, TransferError, Turn
from offload.disk import Disk
from offload.groups import Groups
from offload.host_pool import Extent, HostPool
from offload.host_space import HostSpace
from offload.meter import Meter, Span, Work
from offload.parcels import Item, Parcel, State, bytes_of, dense, pack
from offload.streams import Event, Stream, Streams


@dataclass(slots=True)
class HostTier:
    """See the module's docstring. `expected_groups`: layers of the model."""

    streams: Streams
    pool: HostPool
    meter: Meter = field(default_factory=Meter)
    budget: Budget = field(default_factory=Budget)
    expected_groups: int = 1
    disk: Disk | None = None
    space: HostSpace = field(init=False)
    _flying: deque[Parcel] = field(default_factory=deque)
    groups: Groups = field(init=False)
    _dropped: deque[Parcel] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.groups = Groups(self.budget)
        self.space = HostSpace(self.pool, self.meter, self.budget, self.disk)

    # ---- what the store calls ----

    def save(
        self, tensors: Sequence[Tensor], turn: Turn = Turn.LAYER, tier: Tier = Tier.HOST
    ) -> Parcel:
        """Begin to copy `tensors` to the host, and from there, for the SSD tier, to the disk.

        Raises:
            TransferError: when a copy failed that made room, or there is no room on the disk.
            MemoError: when the host's limit leaves no room.
        """
        self.sweep()
        with torch.no_grad():
            sources = tuple(dense(tensor) for tensor in tensors)
            items = pack(sources)
            size_bytes = self.pool.size_of(items[-1].start + items[-1].size_bytes)
            self._make_room(size_bytes)
            extent = self.space.take(size_bytes, tier)
            parcel = self._write(turn, tier, items, sources, extent)
        self.groups.add(parcel)
        try:
            self._fly(parcel)
            self.space.keep(parcel)
        except (MemoError, Warning):  # a warning may be an error
            self._free(parcel)  # nobody else knows it
            raise
        return parcel

    def load(self, parcel: Parcel) -> tuple[Tensor, ...]:
        """The parcel's tensors on the device; compute waits for them, if they are not there.

        Raises:
            MemoError: when one was changed in place while it was copied.
            TransferError: when a copy failed.
        """
        assert parcel.state is not State.GONE
        self.sweep()
        parcel.check_sources()
        if parcel.is_spoiled:
            raise MemoError(INPLACE)
        if parcel.has_failed:
            raise TransferError("a copy to the host failed before, and its tensors are gone")
        if parcel.state is State.WRITING:
            self.meter.forwarded_bytes += parcel.size_bytes
            tensors = parcel.sources
            self._share(parcel, tensors)
        else:
            if parcel.state is State.STORED:
                self.space.bring(parcel)
                self._land(parcel)
            landing = self._take_landing(parcel)
            tensors = tuple(item.cut(landing) for item in parcel.items)
        self._prefetch(parcel)
        return tensors

    def drop(self, parcel: Parcel) -> None:
        """Forget a parcel. Called by finalizers, in any thread and at any moment: the work is
        `sweep`'s.
        """
        self._dropped.append(parcel)

    def close_group(self) -> None:
        """A layer's forward is over: what comes next is another group.

        Raises:
            SpillError: when the disk has no room for as many groups as are expected.
        """
        parcels = self.groups.close()
        size_bytes = sum(parcel.size_bytes for parcel in parcels)
        spilled_bytes = sum(p.size_bytes for p in parcels if p.tier is Tier.SSD)
        if parcels:
            self._expect_overflow(size_bytes - spilled_bytes, spilled_bytes)
        if size_bytes > self.budget.largest_group_bytes:
            self._reserve(size_bytes - spilled_bytes, spilled_bytes)
            self.budget.largest_group_bytes = size_bytes

    def _expect_overflow(self, held_bytes: int, spilled_bytes: int) -> None:
        """Of groups that are all like this one, and one more: what comes back needs room, too."""
        if self.disk is not None and self.pool.is_limited:
            room_bytes = self.pool.size_bytes - self._staged_bytes(spilled_bytes)
            all_bytes = held_bytes * (self.expected_groups + 1)
            self.space.overflow_bytes = max(all_bytes - room_bytes, 0) if held_bytes else 0

    def _reserve(self, held_bytes: int, spilled_bytes: int) -> None:
        """Have room for as many more groups of this kind as are expected."""
        groups = self.expected_groups
        self.pool.reserve(held_bytes * (groups - 1) + self._staged_bytes(spilled_bytes))
        disk_bytes = spilled_bytes * groups + min(self.space.overflow_bytes, held_bytes * groups)
        if self.disk is not None and disk_bytes:
            self.disk.reserve(disk_bytes)

    def _staged_bytes(self, spilled_bytes: int) -> int:
        return spilled_bytes * min(self.expected_groups - 1, ROUNDING_BUFFERS)

    def sweep(self) -> None:
        """Free what was dropped, take up what has arrived, and count what is over."""
        while self._dropped:
            self._free(self._dropped.popleft())
        self.space.poll()
        while self.space.arrived and self._land_ahead(self.space.arrived[0]):
            self.space.arrived.popleft()
        self.meter.settle()

    def start_trace(self) -> None:
        """Keep spans from here on."""
        self.meter.settle()
        self.streams.synchronize()
        self.meter.origin, self.meter.origin_s = self.streams.current().record(), perf_counter()

    def stop_trace(self) -> list[Span]:
        """The spans since `start_trace`. The host waits for the lanes."""
        self.streams.synchronize()
        self.space.poll()
        self.meter.settle()
        spans, self.meter.spans, self.meter.origin = self.meter.spans, [], None
        return spans

    # ---- device to host ----

    def _write(
        self,
        turn: Turn,
        tier: Tier,
        items: list[Item],
        sources: tuple[Tensor, ...],
        extent: Extent,
    ) -> Parcel:
        lane = self.streams.d2h
        self._let_lane_wait(Lane.D2H, (*extent.events, self.streams.current().record()))
        start = lane.record()
        for item, source in zip(items, sources, strict=True):
            target = extent.memory.narrow(0, item.start, item.size_bytes)
            lane.copy(target, bytes_of(source))
        written = lane.record()
        self.meter.measure(Lane.D2H, Work.COPY, start, written, extent.size_bytes)
        home = self.streams.current()
        return Parcel(self.groups.number, turn, tier, items, extent, written, sources, home)

    def _retire(self, parcel: Parcel) -> None:
        """WRITING to STORED: once compute waits for the copy, its memory may be used again."""
        self._flying.remove(parcel)
        parcel.state, parcel.has_failed = State.STORED, True
        self._let_compute_wait(parcel.home, Lane.D2H, parcel.written)
        parcel.check_sources()
        parcel.sources, parcel.has_failed = (), False

    # ---- host to device ----

    def _land(self, parcel: Parcel) -> None:
        """STORED to LANDING, for what is on the host."""
        assert parcel.extent is not None
        lane, size_bytes, compute = self.streams.h2d, parcel.size_bytes, self.streams.current()
        landing = self.streams.landing(size_bytes)
        self._let_lane_wait(Lane.H2D, (parcel.written, compute.record()))
        start = lane.record()
        lane.copy(landing, parcel.extent.memory)
        parcel.landing, parcel.landed, parcel.home = landing, lane.record(), compute
        self.meter.measure(Lane.H2D, Work.COPY, start, parcel.landed, size_bytes)
        parcel.state = State.LANDING

    def _take_landing(self, parcel: Parcel) -> Tensor:
        """LANDING to STORED: the landing buffer is the caller's, once compute waits for it."""
        assert parcel.landing is not None
        assert parcel.landed is not None
        if parcel in self._flying:
            self._flying.remove(parcel)
        landing, parcel.landing, parcel.state = parcel.landing, None, State.STORED
        self._let_compute_wait(self.streams.current(), Lane.H2D, parcel.landed)
        self._share(parcel, (landing,))
        return landing

    def _share(self, parcel: Parcel, tensors: Sequence[Tensor]) -> None:
        """Memory that was allocated for another stream is not to be used again there too early."""
        if self.streams.current() != parcel.home:
            for tensor in tensors:
                self.streams.share(tensor)

    def _prefetch(self, after: Parcel) -> None:
        """Begin to bring back what backward needs next, as far as the budgets go."""
        has_room = True
        for parcel in self.groups.following(after):
            if parcel.state is State.STORED:
                if not self.space.fetch(parcel):
                    return
                has_room = has_room and (not parcel.is_here or self._land_ahead(parcel))
                if not has_room and not self.space.has_away:
                    return

    def _land_ahead(self, parcel: Parcel) -> bool:
        """Land what is on the host, if it is; False: the budget leaves no room."""
        if parcel.state is State.STORED and parcel.is_here:
            if self._flying_bytes + parcel.size_bytes > self.budget.limit_bytes():
                return False
            self._land(parcel)
            self._fly(parcel)
        return True

    # ---- the budget ----

    @property
    def _flying_bytes(self) -> int:
        return sum(parcel.size_bytes for parcel in self._flying)

    def _make_room(self, size_bytes: int) -> None:
        """Until `size_bytes` more may fly."""
        budget_bytes = self.budget.limit_bytes(size_bytes)
        while self._flying and self._flying_bytes + size_bytes > budget_bytes:
            writing = next((p for p in self._flying if p.state is State.WRITING), None)
            if writing is not None:
                self._retire(writing)
            else:  # prefetched for another backward, which will ask again
                self._take_landing(self._flying[-1])

    def _fly(self, parcel: Parcel) -> None:
        self._flying.append(parcel)
        if parcel.size_bytes > self.budget.limit_bytes() and parcel.state is State.WRITING:
            self._retire(parcel)  # larger than the budget by itself: nothing may be held for it
        meter = self.meter
        meter.in_flight_peak_bytes = max(meter.in_flight_peak_bytes, self._flying_bytes)

    def _free(self, parcel: Parcel) -> None:
        try:
            if parcel.state is State.WRITING:
                self._retire(parcel)
            elif parcel.state is State.LANDING:
                self._take_landing(parcel)
        finally:  # a copy that failed is told, and its memory is free all the same
            parcel.state, parcel.sources = State.GONE, ()
            self.groups.remove(parcel)
            users = (parcel.written, parcel.landed)
            self.space.release(parcel, [user for user in users if user is not None])

    # ---- waiting, and who waits ----

    def _let_lane_wait(self, lane: Lane, events: Sequence[Event]) -> None:
        stream: Stream = {Lane.D2H: self.streams.d2h, Lane.H2D: self.streams.h2d}[lane]
        start = stream.record()
        for event in events:
            stream.wait(event)
        self.meter.measure(lane, Work.LANE_WAIT, start, stream.record())

    def _let_compute_wait(self, compute: Stream, lane: Lane, event: Event) -> None:
        start = compute.record()
        compute.wait(event)
        self.meter.measure(lane, Work.EXPOSED, start, compute.record())
