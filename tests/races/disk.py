"""The double of a disk: writes and reads end as late, and in as bad an order, as events allow.

Scope: `offload.disk` beside `DoubleStreams`, whose adversary runs its two lanes (`disk_lanes.py`),
too. The disk is ordinary memory, lent as a spool lends its extents, and NaN where it is free. What
a race is, is said in `double.py` and `clocks.py`.

Nothing orders transfers but the events that each was given, and what the host knew when it asked
for it: each is a stream of its own. The host knows that one is over once it was told so. Only then
may it give the place to another, or the memory at the other end: a disk tells no lane.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from random import Random

from torch import Tensor

from offload.contracts import SpillError
from offload.disk import DiskCopy, DiskTransfer
from offload.streams import Event
from ssd.contracts import Extent
from ssd.extents import Extents
from tests.races.clocks import Region
from tests.races.disk_lanes import DiskLane, DoubleTransfer
from tests.races.double import DoubleStreams

CAPACITY_BYTES = 1 << 20
"""Of a disk that grows when it is full: more than any test writes."""


class DoubleDisk:
    """See `offload.disk.Disk`, and the module's docstring. `limit_bytes` None: it grows."""

    alignment_bytes = 1024  # more than the pool's own

    def __init__(
        self, streams: DoubleStreams, seed: int, *, limit_bytes: int | None = None
    ) -> None:
        random = Random(f"disk {seed}")
        self.writes = DiskLane("ssd write", streams, random)
        self.reads = DiskLane("ssd read", streams, random)
        self._streams, self._limit_bytes = streams, limit_bytes
        streams.add(self.writes, self.reads)
        self._memory = streams.host_memory(limit_bytes or CAPACITY_BYTES)
        self._extents = Extents(limit_bytes or 0)
        self._lent: list[DiskCopy] = []

    # ---- the protocol ----

    @property
    def size_bytes(self) -> int:
        return self._extents.size_bytes

    @property
    def written_bytes(self) -> int:
        return self.writes.ran_bytes

    def reserve(self, size_bytes: int) -> None:
        if self._limit_bytes is None:
            self._extents.grow(max(size_bytes, self.size_bytes))

    def write(self, memory: Tensor, after: Sequence[Event]) -> DiskCopy:
        self._streams.turn()
        place = self._allocate(memory.numel())
        ends = self._region(place), self._host_region(memory)
        copy = DiskCopy(place, self.writes.put(*ends, after))
        self._lent.append(copy)
        return copy

    def read(self, copy: DiskCopy, memory: Tensor, after: Sequence[Event]) -> DiskTransfer:
        self._streams.turn()
        assert isinstance(copy.write, DoubleTransfer)
        if copy not in self._lent or copy.write.has_failed:
            self._streams.found("bytes are read that are not on the disk")
        ends = self._host_region(memory), self._region(copy.place)
        return self.reads.put(*ends, after)

    def free(self, copy: DiskCopy) -> None:
        self._streams.turn()
        if copy not in self._lent:
            self._streams.found("a place on the disk was freed twice")
            return
        self._lent.remove(copy)
        region = self._region(copy.place)
        for access in region.unknown_to(self._streams.host):
            self._streams.found(f"a place on the disk was freed while {access}", access)
        region.forget(self._streams.host)
        region.poison()
        self._extents.give_back(copy.place)

    def fix(self, memories: Sequence[Tensor]) -> None:
        """Nothing to do: all memory is alike here."""

    # ---- what the harness asks ----

    @property
    def lent_bytes(self) -> int:
        return sum(copy.place.size_bytes for copy in self._lent)

    def run_all(self) -> None:
        """Let all end that is under way. The host knows nothing of it."""
        for lane in (self.writes, self.reads):
            while not lane.is_idle:
                lane.step()

    # ---- within ----

    def _allocate(self, size_bytes: int) -> Extent:
        assert size_bytes % self.alignment_bytes == 0, f"{size_bytes} bytes"
        place = self._extents.take(size_bytes)
        if place is None and self._limit_bytes is None:
            self.reserve(self.size_bytes + size_bytes)
            place = self._extents.take(size_bytes)
        if place is None:
            raise full(size_bytes)
        return place

    def _region(self, place: Extent) -> Region:
        return self._streams.region(self._memory.narrow(0, place.start, place.size_bytes))

    def _host_region(self, memory: Tensor) -> Region:
        assert memory.storage_offset() % self.alignment_bytes == 0, f"at {memory.storage_offset()}"
        return self._streams.region(memory)


def full(size_bytes: int) -> SpillError:
    """What a disk says that has no space."""
    return SpillError(
        f"the double of a disk has no space for {size_bytes} bytes",
        directory=Path("double"),
        operation="allocate",
        errno=errno.ENOSPC,
    )
