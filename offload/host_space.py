"""Host memory with a limit, and a disk behind it: whose bytes are here, and whose are not.

Scope: one pool, and which parcels lie in it. What moves between device and host is
`transfers.py`'s.

A parcel is *here* while it has an extent of the pool. Its bytes may also be, or be on their way, on
the disk: parcels of the SSD tier are written as soon as they are here, those of the HOST tier as
far as the limit asks for it, the ones that backward wants last first. Once written, a parcel's
extent is taken when somebody needs it, not before: what is still here need not be read again.

Two limits are met by waiting. The pool's is on all that is here (`host_bytes`). The *staging* limit
is on what parcels of the SSD tier take, which is as much as may be in flight on the device. Only
demand waits; what is fetched ahead comes as far as there is room.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from offload.budget import Budget
from offload.contracts import Lane, MemoError, SpillError, Tier
from offload.disk import Disk, DiskCopy, DiskTransfer
from offload.host_pool import Extent, HostPool
from offload.meter import Meter
from offload.parcels import Parcel
from offload.streams import Event


@dataclass(slots=True)
class HostSpace:
    """See the module's docstring. `arrived`: fetched ahead, and not taken up yet.
    `overflow_bytes`: of the HOST tier, to be on the disk before their room is asked for.
    """

    pool: HostPool
    meter: Meter
    budget: Budget
    disk: Disk | None = None
    overflow_bytes: int = 0
    arrived: deque[Parcel] = field(default_factory=deque)
    _here: dict[Parcel, None] = field(default_factory=dict)
    _writing: deque[Parcel] = field(default_factory=deque)
    _reading: deque[Parcel] = field(default_factory=deque)
    _leaving: deque[tuple[Parcel, tuple[Event, ...]]] = field(default_factory=deque)
    _transfers: deque[tuple[Lane, DiskTransfer, int]] = field(default_factory=deque)
    _clean: dict[Tier, list[tuple[int, int, Parcel]]] = field(
        default_factory=lambda: {tier: [] for tier in Tier}
    )
    _count_up: itertools.count[int] = field(default_factory=itertools.count)
    _staged_bytes: int = 0
    _away: int = 0
    _overflown_bytes: int = 0
    _failed: DiskCopy | None = None

    @property
    def has_away(self) -> bool:
        """Whether some parcel's bytes are on the disk alone."""
        return self._away > 0

    # ---- what the transfer engine calls ----

    def take(self, size_bytes: int, tier: Tier) -> Extent:
        """Room for a parcel, waited for if need be.

        Raises:
            SpillError: when a write failed whose parcel would have made room.
            MemoError: when waiting makes none.
        """
        while (extent := self._take(size_bytes, tier)) is None:
            self._raise_failure()
            if not self._give_way(tier if self._is_staging_full(size_bytes, tier) else None):
                raise self._no_room(size_bytes)
        return extent

    def keep(self, parcel: Parcel) -> None:
        """A parcel's copy to its extent was submitted: the bytes will be here.

        Raises:
            SpillError: when the disk has no space for it.
        """
        self._here[parcel] = None
        if parcel.tier is Tier.SSD:
            self._begin_write(parcel)
        elif self._overflown_bytes < self.overflow_bytes:
            self._begin_write(next(p for p in self._here if p.copy is None))

    def bring(self, parcel: Parcel) -> None:
        """Have a parcel's bytes here; the caller waits for them.

        Raises:
            SpillError: when reading them failed. The next call tries again.
        """
        self.fetch(parcel, extent=parcel.extent or self.take(parcel.size_bytes, parcel.tier))
        if parcel.fetch is not None:
            self._wait(Lane.SSD_READ, [parcel.fetch])
            self.poll()
        if parcel.fetch is not None:
            error = parcel.fetch.error
            self._evict(parcel)
            assert error is not None
            raise error
        if parcel in self.arrived:  # it is taken up now, and not to be landed a second time
            self.arrived.remove(parcel)

    def fetch(self, parcel: Parcel, *, extent: Extent | None = None) -> bool:
        """Begin to bring a parcel's bytes here, if they are not; False: there is no room now."""
        if parcel.extent is not None:
            return True
        extent = extent or self._take(parcel.size_bytes, parcel.tier)
        if extent is None:
            return False
        assert self.disk is not None
        assert parcel.copy is not None
        parcel.extent = extent
        self._away -= 1
        parcel.fetch = self.disk.read(parcel.copy, extent.memory, extent.events)
        self._note(Lane.SSD_READ, parcel.fetch, parcel.size_bytes)
        self._here[parcel] = None
        self._reading.append(parcel)
        return True

    def release(self, parcel: Parcel, users: Sequence[Event]) -> None:
        """Nobody wants the parcel any more; `users` are the last to use its extent."""
        self._here.pop(parcel, None)
        self._away -= parcel.extent is None
        self._leaving.append((parcel, tuple(users)))
        if parcel.copy is not None and parcel.copy.write.cancel():
            self.meter.spared_bytes += parcel.size_bytes
        if parcel.fetch is not None:
            parcel.fetch.cancel()
        self._let_leave()

    def poll(self) -> None:
        """See what is over; nobody waits."""
        while self._writing and (self._writing[0].copy is None or self._writing[0].copy.is_over):
            self._end_write(self._writing.popleft())
        for parcel in [p for p in self._reading if p.fetch is None or p.fetch.is_done()]:
            self._reading.remove(parcel)
            self._note_clean(parcel)
            if parcel in self._here and parcel.fetch is not None and parcel.fetch.error is None:
                parcel.fetch = None
                self.arrived.append(parcel)
        self._let_leave()
        while self._transfers and self._transfers[0][1].is_done():
            self._count(*self._transfers.popleft())

    # ---- room ----

    def _take(self, size_bytes: int, tier: Tier) -> Extent | None:
        self.poll()
        if self._is_staging_full(size_bytes, tier):
            return None
        extent = self.pool.take(size_bytes)
        if extent is not None and tier is Tier.SSD:
            self._staged_bytes += extent.size_bytes
        return extent

    def _is_staging_full(self, size_bytes: int, tier: Tier) -> bool:
        if tier is not Tier.SSD:
            return False
        limit_bytes = self.budget.limit_bytes(size_bytes)
        return bool(self._staged_bytes) and self._staged_bytes + size_bytes > limit_bytes

    def _note_clean(self, parcel: Parcel) -> None:
        """It may have become so."""
        if parcel in self._here and parcel.is_clean:
            entry = (parcel.group, next(self._count_up), parcel)
            heapq.heappush(self._clean[parcel.tier], entry)

    def _clean_wanted_last(self, only: Tier | None) -> Parcel | None:
        """Of those that may be evicted: backward wants the first group last."""
        tops = []
        for heap in [self._clean[only]] if only is not None else self._clean.values():
            while heap and not (heap[0][2] in self._here and heap[0][2].is_clean):
                heapq.heappop(heap)
            tops += heap[:1]
        return min(tops)[2] if tops else None

    def _give_way(self, only: Tier | None) -> bool:
        """Do or wait for one thing that brings room closer, among parcels of one tier or (None) of
        any; False: there is none.
        """
        if clean := self._clean_wanted_last(only):
            self._evict(clean)
        elif self._writing:
            self._wait(Lane.SSD_WRITE, _transfers_of(self._writing[0]))
        elif self._leaving:
            self._wait(Lane.SSD_WRITE, _transfers_of(self._leaving[0][0]))
        elif dirty := self._dirty(only):
            self._begin_write(dirty)
        elif self._reading:
            self._wait(Lane.SSD_READ, _transfers_of(self._reading[0]))
        else:
            return False
        return True

    def _dirty(self, only: Tier | None) -> Parcel | None:
        mine = (p for p in self._here if p.copy is None and (only is None or p.tier is only))
        return None if self.disk is None else next(mine, None)

    def _evict(self, parcel: Parcel) -> None:
        """Here no more; the disk has it."""
        users = [event for event in (parcel.written, parcel.landed) if event is not None]
        self._vacate(parcel, users)
        parcel.extent = parcel.fetch = None
        del self._here[parcel]
        self._away += 1

    def _vacate(self, parcel: Parcel, users: Sequence[Event]) -> None:
        assert parcel.extent is not None
        # A read that was cancelled, or failed, may not have waited for who was there before.
        before = () if parcel.fetch is None else parcel.extent.events
        self._staged_bytes -= parcel.size_bytes if parcel.tier is Tier.SSD else 0
        self.pool.give_back(parcel.extent, (*users, *before))

    def _no_room(self, size_bytes: int) -> MemoError:
        cure = "a larger host_bytes" + ("" if self.disk is not None else ", or a spill_dir")
        return MemoError(
            f"host_bytes leaves no room for {size_bytes:,} bytes in one stretch, and nothing here "
            f"can go to a disk ({self.pool.free_bytes:,} of {self.pool.size_bytes:,} are free): it "
            f"takes {cure}, shorter sequences, or smaller tiles"
        )

    # ---- the disk ----

    def _begin_write(self, parcel: Parcel) -> None:
        assert self.disk is not None
        assert parcel.extent is not None
        parcel.copy = self._write(parcel)
        self._note(Lane.SSD_WRITE, parcel.copy.write, parcel.size_bytes)
        self._writing.append(parcel)
        self._overflown_bytes += parcel.size_bytes if parcel.tier is Tier.HOST else 0

    def _write(self, parcel: Parcel) -> DiskCopy:
        """On a full disk, what was dropped makes room once it may leave."""
        assert self.disk is not None
        assert parcel.extent is not None
        while True:
            try:
                return self.disk.write(parcel.extent.memory, [parcel.written])
            except SpillError:
                if not self._leaving:
                    raise
            self._wait(Lane.SSD_WRITE, _transfers_of(self._leaving[0][0]))
            self.poll()

    def _forget_copy(self, parcel: Parcel) -> None:
        if parcel.copy is not None:
            assert self.disk is not None
            self.disk.free(parcel.copy)
            parcel.copy = None
            self._overflown_bytes -= parcel.size_bytes if parcel.tier is Tier.HOST else 0

    def _end_write(self, parcel: Parcel) -> None:
        """After a failure the bytes are here alone, and the next demand for room is told."""
        if parcel in self._here and parcel.copy is not None and not parcel.copy.is_whole:
            self._forget_failed()
            self._failed, parcel.copy = parcel.copy, None
            self._overflown_bytes -= parcel.size_bytes if parcel.tier is Tier.HOST else 0
        self._note_clean(parcel)

    def _raise_failure(self) -> None:
        if self._failed is not None:
            self._failed.write.settle()  # it is told now, and need not be when its place is freed
            error = self._failed.write.error
            self._forget_failed()
            assert error is not None
            raise error

    def _forget_failed(self) -> None:
        if self._failed is not None:
            assert self.disk is not None
            self.disk.free(self._failed)
            self._failed = None

    def _let_leave(self) -> None:
        """Give back what was released, once no transfer is under way in it."""
        for _ in range(len(self._leaving)):
            parcel, users = self._leaving.popleft()
            if all(transfer.is_done() for transfer in _transfers_of(parcel)):
                self._give_back(parcel, users)
            else:
                self._leaving.append((parcel, users))

    def _give_back(self, parcel: Parcel, users: Sequence[Event]) -> None:
        if parcel.extent is not None:
            self._vacate(parcel, users)
        self._forget_copy(parcel)
        parcel.extent = parcel.fetch = None
        if not self._here:  # that step is over
            for heap in self._clean.values():
                heap.clear()
            self._forget_failed()

    # ---- counting ----

    def _note(self, lane: Lane, transfer: DiskTransfer, size_bytes: int) -> None:
        self._transfers.append((lane, transfer, size_bytes))

    def _count(self, lane: Lane, transfer: DiskTransfer, size_bytes: int) -> None:
        span_s = transfer.span_s
        if span_s is not None:
            self.meter.transferred(lane, *span_s, size_bytes, waited_s=transfer.waited_s)

    def _wait(self, lane: Lane, transfers: Sequence[DiskTransfer]) -> None:
        """The calling thread waits, and with it, on a CPU, compute."""
        start_s = time.perf_counter()
        for transfer in transfers:
            transfer.settle()
        self.meter.exposed(lane, start_s, time.perf_counter())


def _transfers_of(parcel: Parcel) -> list[DiskTransfer]:
    write = None if parcel.copy is None else parcel.copy.write
    return [transfer for transfer in (write, parcel.fetch) if transfer is not None]
