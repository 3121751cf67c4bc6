"""A pool of host memory: extents of exactly the bytes that are asked for, lent and given back.

Scope: which bytes of which slab. Extents remember the events after which their bytes may be written
again; waiting for them is the borrower's business. Sizes are no keys: what is given back coalesces,
so that sequences of other lengths find room in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from offload.host_memory import LARGE_PAGE_BYTES
from offload.streams import Event

ALIGNMENT_BYTES = 512
"""Of extents and of tensors in them: what CUDA's allocator gives, so that kernels run alike on a
tensor that has been away.
"""


def aligned(size_bytes: int, alignment_bytes: int = ALIGNMENT_BYTES) -> int:
    """The next multiple."""
    return -(-size_bytes // alignment_bytes) * alignment_bytes


@dataclass(slots=True)
class Extent:
    """Bytes `[start, start + size_bytes)` of a slab; `events`: who used them last."""

    slab: Slab
    start: int
    size_bytes: int
    events: tuple[Event, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + self.size_bytes

    @property
    def memory(self) -> Tensor:
        """uint8 [size_bytes]."""
        return self.slab.memory.narrow(0, self.start, self.size_bytes)


@dataclass(slots=True, eq=False)
class Slab:
    """One allocation, and its free extents in order of address."""

    memory: Tensor
    free: list[Extent] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return self.memory.numel()

    @property
    def is_free(self) -> bool:
        """Whether all of it is free, and nobody's copy is under way in it."""
        whole = len(self.free) == 1 and self.free[0].size_bytes == self.size_bytes
        return whole and all(event.is_done() for event in self.free[0].events)

    def insert(self, extent: Extent) -> None:
        """Take an extent back, and join it with free neighbours."""
        index = sum(other.start < extent.start for other in self.free)
        self.free.insert(index, extent)
        if index + 1 < len(self.free) and self.free[index + 1].start == extent.stop:
            self._join(index)
        if index and self.free[index - 1].stop == extent.start:
            self._join(index - 1)

    def _join(self, index: int) -> None:
        left, right = self.free[index], self.free.pop(index + 1)
        pending = tuple(event for event in (*left.events, *right.events) if not event.is_done())
        self.free[index] = Extent(self, left.start, left.size_bytes + right.size_bytes, pending)


class HostPool:
    """Lends extents of slabs that `allocate` makes (uint8 [size_bytes]). With a limit, it is one
    slab of just that size, made at once.
    """

    def __init__(
        self,
        allocate: Callable[[int], Tensor],
        *,
        limit_bytes: int | None = None,
        alignment_bytes: int = ALIGNMENT_BYTES,
    ) -> None:
        self._allocate = allocate
        self._slabs: list[Slab] = []
        self._limit_bytes = limit_bytes
        self.alignment_bytes = max(alignment_bytes, ALIGNMENT_BYTES)
        self.slabs_made = 0
        if limit_bytes is not None and limit_bytes >= self.alignment_bytes:
            self._add_slab(limit_bytes // self.alignment_bytes * self.alignment_bytes)

    @property
    def is_limited(self) -> bool:
        """Whether `take` may find no room."""
        return self._limit_bytes is not None

    @property
    def memories(self) -> list[Tensor]:
        """All slabs, as uint8 [bytes]."""
        return [slab.memory for slab in self._slabs]

    @property
    def size_bytes(self) -> int:
        """Bytes of all slabs, lent or not."""
        return sum(slab.size_bytes for slab in self._slabs)

    @property
    def free_bytes(self) -> int:
        return sum(extent.size_bytes for slab in self._slabs for extent in slab.free)

    def reserve(self, size_bytes: int) -> None:
        """Have so many bytes free, in one more slab if need be: many small slabs would each stop
        the device when they are pinned.
        """
        missing_bytes = size_bytes - self.free_bytes
        if missing_bytes > 0 and not self.is_limited:
            self._grow(missing_bytes)

    def size_of(self, size_bytes: int) -> int:
        """What an extent for `size_bytes` takes."""
        return aligned(max(size_bytes, 1), self.alignment_bytes)

    def take(self, size_bytes: int) -> Extent | None:
        """Lend `size_bytes`, of the smallest free extent that has them. None: the limit leaves no
        room for them in one stretch.

        Raises:
            MemoryError: when the system refuses more memory.
        """
        size_bytes = self.size_of(size_bytes)
        fitting = [e for slab in self._slabs for e in slab.free if e.size_bytes >= size_bytes]
        extent = min(fitting, key=lambda e: e.size_bytes, default=None)
        if extent is None:
            if self.is_limited:
                return None
            extent = self._grow(size_bytes)
        slab = extent.slab
        slab.free.remove(extent)
        if extent.size_bytes > size_bytes:
            rest = extent.size_bytes - size_bytes
            slab.insert(Extent(slab, extent.start + size_bytes, rest, extent.events))
        return Extent(slab, extent.start, size_bytes, extent.events)

    def give_back(self, extent: Extent, events: Sequence[Event]) -> None:
        """Take back what was lent; its bytes may be written again after `events`."""
        extent.slab.insert(Extent(extent.slab, extent.start, extent.size_bytes, tuple(events)))

    def _grow(self, size_bytes: int) -> Extent:
        self._release(size_bytes)
        return self._add_slab(aligned(size_bytes, LARGE_PAGE_BYTES))

    def _add_slab(self, size_bytes: int) -> Extent:
        slab = Slab(self._allocate(size_bytes))
        slab.insert(Extent(slab, 0, slab.size_bytes))
        self._slabs.append(slab)
        self.slabs_made += 1
        return slab.free[0]

    def _release(self, size_bytes: int) -> None:
        """Let slabs go that lie idle, as many bytes as are about to be added: lengths that grow
        must not leave every smaller size behind.
        """
        for slab in sorted(self._slabs, key=lambda slab: slab.size_bytes):
            if size_bytes <= 0:
                return
            if slab.is_free:
                self._slabs.remove(slab)
                size_bytes -= slab.size_bytes
