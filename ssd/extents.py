"""Which bytes of the spool are whose.

Scope: extents of exactly the bytes that are asked for, lent and given back; no file, no I/O.
Extents that were given back last are lent first: blocks that were written before are about twice as
fast as new ones. So new bytes are kept apart, and touched only when nothing else fits.
"""

from __future__ import annotations

from ssd.contracts import Extent


class Extents:
    """The bytes `[0, size_bytes)`. Not safe for threads: the spool has a lock."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        # In the order in which they were given back; no two touch.
        self._free: list[Extent] = []
        # Bytes from here on were never lent.
        self._new_start = 0

    @property
    def free_bytes(self) -> int:
        return self.size_bytes - self._new_start + sum(e.size_bytes for e in self._free)

    @property
    def tail_bytes(self) -> int:
        """Free at the end: what growth adds to."""
        return self.size_bytes - self._tail_start()

    @property
    def largest_bytes(self) -> int:
        """The largest extent that could be lent now."""
        return max([self.tail_bytes, *(extent.size_bytes for extent in self._free)])

    def grow(self, size_bytes: int) -> None:
        """Be of `size_bytes` from now on, which is no less than before."""
        assert size_bytes >= self.size_bytes
        self.size_bytes = size_bytes

    def take(self, size_bytes: int) -> Extent | None:
        """Lend `size_bytes`; None: there is no room for them in one extent."""
        for index in range(len(self._free) - 1, -1, -1):
            if self._free[index].size_bytes >= size_bytes:
                return self._take_part(index, size_bytes)
        return self._take_new(size_bytes)

    def give_back(self, extent: Extent) -> None:
        """Take back what was lent, and join it with free neighbours.

        Raises:
            ValueError: when it isn't lent.
        """
        if extent.stop > self._new_start or any(_overlap(extent, free) for free in self._free):
            raise ValueError(f"extent [{extent.start}, {extent.stop}) is not lent")
        start, stop = extent.start, extent.stop
        for free in [f for f in self._free if f.stop == start or f.start == stop]:
            self._free.remove(free)
            start, stop = min(start, free.start), max(stop, free.stop)
        self._free.append(Extent(start, stop - start))

    def _take_part(self, index: int, size_bytes: int) -> Extent:
        whole = self._free[index]
        rest_bytes = whole.size_bytes - size_bytes
        if rest_bytes:
            self._free[index] = Extent(whole.start + size_bytes, rest_bytes)
        else:
            del self._free[index]
        return Extent(whole.start, size_bytes)

    def _take_new(self, size_bytes: int) -> Extent | None:
        start = self._tail_start()
        if start + size_bytes > self.size_bytes:
            return None
        self._free = [extent for extent in self._free if extent.start != start]
        self._new_start = start + size_bytes
        return Extent(start, size_bytes)

    def _tail_start(self) -> int:
        """Where the free bytes at the end begin, those before the new ones included."""
        starts = (extent.start for extent in self._free if extent.stop == self._new_start)
        return next(starts, self._new_start)


def _overlap(one: Extent, other: Extent) -> bool:
    return one.start < other.stop and other.start < one.stop
