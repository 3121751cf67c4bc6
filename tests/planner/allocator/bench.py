"""An allocator on the bench: short words for what is done to it, and for what it holds.

Scope: what the tests of single rules share.
"""

from __future__ import annotations

from planner.allocator import AllocatorConfig, CachingAllocator, Malloc, OutOfMemory, Segment, Usage

KIB = 2**10
MIB = 2**20


class Bench:
    """An allocator, and short words for what is done to it."""

    def __init__(self, settings: str = "", capacity: int | None = None) -> None:
        config = AllocatorConfig.parse(settings)
        self.allocator = CachingAllocator(config, capacity_bytes=capacity)
        self._count = 0
        self._base: int | None = None

    def take(self, size_bytes: int, stream: int = 0) -> int:
        """Allocate, and return the id."""
        result = self.try_take(size_bytes, stream)
        assert not isinstance(result, OutOfMemory), result
        return result

    def try_take(self, size_bytes: int, stream: int = 0) -> int | OutOfMemory:
        self._count += 1
        result = self.allocator.malloc(Malloc(self._count, size_bytes, stream))
        if isinstance(result, OutOfMemory):
            return result
        self._base = result if self._base is None else self._base
        return self._count

    def give(self, *ids: int) -> None:
        for id in ids:
            self.allocator.free(id)

    def at(self, id: int) -> int:
        """Where it lies, from the first allocation's address on."""
        assert self._base is not None
        blocks = [block for segment in self.segments for block in segment.blocks]
        return next(block.address for block in blocks if block.id == id) - self._base

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.allocator.snapshot()

    @property
    def sizes(self) -> list[list[int]]:
        """Of blocks by segment; free ones are negative, waiting ones are not."""
        return [
            [b.size_bytes if b.is_active else -b.size_bytes for b in segment.blocks]
            for segment in self.segments
        ]

    @property
    def usage(self) -> Usage:
        return self.allocator.usage

    @property
    def reserved(self) -> int:
        return self.usage.reserved_bytes.now
