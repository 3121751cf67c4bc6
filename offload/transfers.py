"""The transfer engine of one device: parcels go to the host behind compute's back, and come back
before compute asks for them.

Scope: the HOST tier. A parcel is

- WRITING: its copy to the host was submitted, and its tensors are still held on the device. If it
  is asked for now, they are handed back as they are (*forwarded*);
- STORED: on the host alone;
- LANDING: its copy back was submitted, and nobody has asked for it yet;
- GONE: dropped by its owner.

Bytes that are WRITING, or LANDING before they are asked for, are *in flight*, and never more than
the budget: when room is needed, compute waits for the oldest write and lets its tensors go. No call
makes the host wait beside a GPU: compute's stream waits, and memory is given back in that stream's
order. The default budget, twice the largest group, is MEMO's two rounding buffers.

Parcels of one layer call are a *group*. They are brought back in the order in which backward wants
them: the last group first, and within a group by `Turn`, then as they came.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offload.contracts import INPLACE, Lane, MemoError, TransferError, Turn
from offload.host_pool import Extent, HostPool, aligned
from offload.meter import Meter, Span, Work
from offload.parcels import Item, Parcel, State, bytes_of, dense, pack
from offload.streams import Event, Stream, Streams

_ROUNDING_BUFFERS = 2


@dataclass(slots=True)
class HostTier:
    """See the module's docstring. `in_flight_bytes` None: twice the largest group."""

    streams: Streams
    pool: HostPool
    meter: Meter = field(default_factory=Meter)
    in_flight_bytes: int | None = None
    expected_groups: int = 1
    _flying: deque[Parcel] = field(default_factory=deque)
    _groups: dict[int, list[Parcel]] = field(default_factory=dict)
    _next_group: int = 0
    _largest_group_bytes: int = 0
    _dropped: deque[Parcel] = field(default_factory=deque)

    # ---- what the store calls ----

    def save(self, tensors: Sequence[Tensor], turn: Turn = Turn.LAYER) -> Parcel:
        """Begin to copy `tensors` to the host."""
        self.sweep()
        with torch.no_grad():
            sources = tuple(dense(tensor) for tensor in tensors)
            items = pack(sources)
            size_bytes = items[-1].start + items[-1].size_bytes
            self._make_room(aligned(size_bytes))
            parcel = self._write(turn, items, sources, self.pool.take(size_bytes))
        insort(self._groups.setdefault(parcel.group, []), parcel, key=lambda p: p.turn)
        try:
            self._fly(parcel)
        except TransferError:
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
        """A layer's forward is over: what comes next is another group."""
        parcels = self._groups.get(self._next_group, [])
        if not parcels:
            return
        size_bytes = sum(parcel.size_bytes for parcel in parcels)
        if size_bytes > self._largest_group_bytes:
            self._largest_group_bytes = size_bytes
            self.pool.reserve(size_bytes * (self.expected_groups - 1))
        self._next_group += 1

    def sweep(self) -> None:
        """Free what was dropped, and count what is over."""
        while self._dropped:
            self._free(self._dropped.popleft())
        self.meter.settle()

    def start_trace(self) -> None:
        """Keep spans from here on."""
        self.meter.settle()
        self.meter.origin = self.streams.current().record()

    def stop_trace(self) -> list[Span]:
        """The spans since `start_trace`. The host waits for the lanes."""
        self.streams.synchronize()
        self.meter.settle()
        spans, self.meter.spans, self.meter.origin = self.meter.spans, [], None
        return spans

    # ---- device to host ----

    def _write(
        self, turn: Turn, items: list[Item], sources: tuple[Tensor, ...], extent: Extent
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
        return Parcel(self._next_group, turn, items, extent, written, sources, home)

    def _retire(self, parcel: Parcel) -> None:
        """WRITING to STORED: once compute waits for the copy, its memory may be used again."""
        self._flying.remove(parcel)
        parcel.state, parcel.has_failed = State.STORED, True
        self._let_compute_wait(parcel.home, Lane.D2H, parcel.written)
        parcel.check_sources()
        parcel.sources, parcel.has_failed = (), False

    # ---- host to device ----

    def _land(self, parcel: Parcel) -> None:
        """STORED to LANDING."""
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
        """Begin to bring back what backward needs next, as far as the budget goes."""
        for parcel in self._following(after):
            if parcel.state is State.STORED:
                if self._flying_bytes + parcel.size_bytes > self._budget_bytes(0):
                    return
                self._land(parcel)
                self._fly(parcel)

    def _following(self, after: Parcel) -> Iterator[Parcel]:
        own = self._groups[after.group]
        yield from own[own.index(after) + 1 :]
        for group in sorted((g for g in self._groups if g < after.group), reverse=True):
            yield from self._groups[group]

    # ---- the budget ----

    @property
    def _flying_bytes(self) -> int:
        return sum(parcel.size_bytes for parcel in self._flying)

    def _budget_bytes(self, size_bytes: int) -> int:
        if self.in_flight_bytes is not None:
            return self.in_flight_bytes
        open_bytes = sum(p.size_bytes for p in self._groups.get(self._next_group, []))
        return _ROUNDING_BUFFERS * max(self._largest_group_bytes, open_bytes, size_bytes)

    def _make_room(self, size_bytes: int) -> None:
        """Until `size_bytes` more may fly."""
        budget_bytes = self._budget_bytes(size_bytes)
        while self._flying and self._flying_bytes + size_bytes > budget_bytes:
            writing = next((p for p in self._flying if p.state is State.WRITING), None)
            if writing is not None:
                self._retire(writing)
            else:  # prefetched for another backward, which will ask again
                self._take_landing(self._flying[-1])

    def _fly(self, parcel: Parcel) -> None:
        self._flying.append(parcel)
        if parcel.size_bytes > self._budget_bytes(0) and parcel.state is State.WRITING:
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
            self._leave_group(parcel)
            users = (parcel.written, parcel.landed)
            self.pool.give_back(parcel.extent, [user for user in users if user is not None])

    def _leave_group(self, parcel: Parcel) -> None:
        group = self._groups[parcel.group]
        group.remove(parcel)
        if not group:
            del self._groups[parcel.group]

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
