"""Blocks, and the pools of those that are free.

Scope: the linked list of a segment's blocks, and two ordered sets of each pool: free blocks by
size and then address, and unmapped stretches of expandable segments by address, both by stream.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from planner.allocator.device import AddressRange


@dataclass(slots=True, eq=False)
class Block:
    """`[address, address + size_bytes)`; `previous` and `next` are its neighbours in the segment.
    `expandable`: the addresses of the expandable segment that it is of. `owner_id` and
    `requested_bytes` are those of the last malloc. `stream_uses`: other streams on which it was
    used. Freed after that it `is_waiting`, until a malloc sees that no stream is `pending`.
    `aged_from`: its pool's count of searches when it became free.
    """

    address: int
    size_bytes: int
    stream: int
    pool: Pool
    expandable: AddressRange | None = None
    is_mapped: bool = True
    is_allocated: bool = False
    owner_id: int | None = None
    requested_bytes: int = 0
    previous: Block | None = None
    next: Block | None = None
    stream_uses: set[int] = field(default_factory=set)
    is_waiting: bool = False
    pending: set[int] = field(default_factory=set)
    aged_from: int = 0

    @property
    def stop(self) -> int:
        return self.address + self.size_bytes

    @property
    def is_alone(self) -> bool:
        """Whether it is a whole segment."""
        return self.previous is None and self.next is None

    @property
    def is_idle(self) -> bool:
        """Nobody has it: it is free, or unmapped."""
        return not (self.is_allocated or self.is_waiting)

    @property
    def age(self) -> int:
        return self.pool.searches - self.aged_from

    def put_between(self, previous: Block | None, following: Block | None) -> None:
        self.previous, self.next = previous, following
        if previous is not None:
            previous.next = self
        if following is not None:
            following.previous = self

    def cut(self, size_bytes: int) -> Block:
        """Give the first `size_bytes` away as a new block, and keep the rest. Neither is in a set
        of the pool.
        """
        low = Block(self.address, size_bytes, self.stream, self.pool, self.expandable)
        low.is_mapped = self.is_mapped
        low.put_between(self.previous, self)
        self.address += size_bytes
        self.size_bytes -= size_bytes
        return low


@dataclass(slots=True, eq=False)
class Pool:
    """Small or large blocks of all streams. `searches` are counted for garbage collection."""

    is_small: bool
    searches: int = 0
    _free: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    _unmapped: dict[int, list[int]] = field(default_factory=dict)
    _blocks: dict[int, Block] = field(default_factory=dict)

    def add_free(self, block: Block) -> None:
        block.aged_from = self.searches
        insort(self._free.setdefault(block.stream, []), (block.size_bytes, block.address))
        self._blocks[block.address] = block

    def add_unmapped(self, block: Block) -> None:
        insort(self._unmapped.setdefault(block.stream, []), block.address)
        self._blocks[block.address] = block

    def remove(self, block: Block) -> None:
        """Out of the set that it is in."""
        if block.is_mapped:
            free = self._free[block.stream]
            del free[bisect_left(free, (block.size_bytes, block.address))]
        else:
            unmapped = self._unmapped[block.stream]
            del unmapped[bisect_left(unmapped, block.address)]
        del self._blocks[block.address]

    def at_least(self, stream: int, size_bytes: int) -> Iterator[Block]:
        """Free blocks that are large enough, the smallest and then the lowest first."""
        free = self._free.get(stream, [])
        for index in range(bisect_left(free, (size_bytes, 0)), len(free)):
            yield self._blocks[free[index][1]]

    def free_blocks(self) -> list[Block]:
        """Of all streams; each by size and then address."""
        return [
            self._blocks[address]
            for stream in sorted(self._free)
            for _, address in self._free[stream]
        ]

    def unmapped_blocks(self, stream: int) -> Iterator[Block]:
        """By address."""
        return (self._blocks[address] for address in self._unmapped.get(stream, []))

    def largest_free_bytes(self, stream: int) -> int:
        free = self._free.get(stream)
        return free[-1][0] if free else 0


def merge(block: Block, other: Block | None) -> None:
    """Let `block`, which is in no set, take a neighbour in, if that is idle and as mapped as it."""
    if other is None or not other.is_idle or other.is_mapped != block.is_mapped:
        return
    block.pool.remove(other)
    if other is block.previous:
        block.address = other.address
        block.put_between(other.previous, block.next)
    else:
        block.put_between(block.previous, other.next)
    block.size_bytes += other.size_bytes
