"""The caching allocator: malloc, free, and what it holds.

Scope: the order of things (`DeviceCachingAllocator::malloc` and `free`). Sizes, blocks, expandable
segments and releasing are in files of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.allocator.blocks import Block, Pool
from planner.allocator.config import AllocatorConfig
from planner.allocator.contracts import Malloc, OutOfMemory, Segment, Usage
from planner.allocator.device import Device
from planner.allocator.expandable import expandable_bytes, take_expandable
from planner.allocator.release import (
    collect_garbage,
    free_block,
    release_all,
    release_some,
    settle,
)
from planner.allocator.sizes import block_bytes, is_split, segment_bytes
from planner.allocator.snapshot import segments
from planner.allocator.state import State

_EMPTY = -1
"""As the address of an allocation of 0 bytes, which takes nothing."""


class CachingAllocator:
    """One device's. `capacity_bytes` is what the device has for it, None for no bound; what else is
    on the device (context, workspaces, NCCL) is the caller's to take off.

    Raises:
        ValueError: for a capacity that is not above 0, and for a memory fraction without one.
    """

    def __init__(
        self, config: AllocatorConfig | None = None, *, capacity_bytes: int | None = None
    ) -> None:
        config = config or AllocatorConfig()
        if capacity_bytes is not None and capacity_bytes <= 0:
            raise ValueError(f"capacity_bytes is {capacity_bytes}: takes a number above 0")
        if capacity_bytes is None and config.memory_fraction < 1:
            raise ValueError(
                "capacity_bytes is None: takes a number when there is a fraction of it"
            )
        self._state = State(config, Device(capacity_bytes))
        self._empty: set[int] = set()
        self._done: set[int] = set()

    @property
    def usage(self) -> Usage:
        return self._state.usage

    def snapshot(self) -> tuple[Segment, ...]:
        """What the segments are made of, by address. For looking at: it takes time."""
        return segments(self._state)

    def malloc(self, request: Malloc) -> int | OutOfMemory:
        """Allocate; the address, -1 for 0 bytes. After `OutOfMemory` all that is free has been
        released, and the allocator may be used on.

        Raises:
            ValueError: for a size below 0, and for an id that is allocated.
        """
        self._check(request)
        if request.size_bytes == 0:
            self._empty.add(request.id)
            return _EMPTY
        state = self._state
        settle(state, self._done)
        self._done = set()
        size_bytes = block_bytes(request.size_bytes, state.config)
        pool = state.pool_of(size_bytes)
        block = self._find(pool, request.stream, size_bytes)
        if block is None:
            block = self._grow(pool, request.stream, size_bytes)
        if block is None:
            return self._out_of_memory(request, pool, size_bytes)
        block = self._split(block, size_bytes)
        state.hand_out(block, request.id, request.size_bytes)
        return block.address

    def free(self, request_id: int) -> None:
        """Raises `ValueError` for an id that is not allocated."""
        if request_id in self._empty:
            self._empty.remove(request_id)
            return
        block = self._live(request_id)
        state = self._state
        del state.live[request_id]
        state.take_back(block)
        if not block.stream_uses:
            free_block(state, block)
            return
        block.pending, block.stream_uses, block.is_waiting = block.stream_uses, set(), True
        # An event recorded now is not among what a stream had ended before.
        self._settle_done()
        state.waiting.append(block)

    def record_stream(self, request_id: int, stream: int) -> None:
        """Raises `ValueError` for an id that is not allocated."""
        if request_id in self._empty:
            return
        block = self._live(request_id)
        if stream != block.stream:
            block.stream_uses.add(stream)

    def stream_done(self, stream: int) -> None:
        """All that `stream` has queued is over; seen at the next malloc."""
        self._done.add(stream)

    def empty_cache(self) -> None:
        """Release all that can be."""
        release_all(self._state)

    # ---- inside ----

    def _check(self, request: Malloc) -> None:
        if request.size_bytes < 0:
            raise ValueError(f"size_bytes is {request.size_bytes}: takes 0 or more")
        if request.id in self._state.live or request.id in self._empty:
            raise ValueError(f"id is {request.id}, which is allocated: takes one that is not")

    def _live(self, request_id: int) -> Block:
        block = self._state.live.get(request_id)
        if block is None:
            raise ValueError(f"id is {request_id}, which is not allocated")
        return block

    def _settle_done(self) -> None:
        """Mark in freed blocks what streams have ended, before later events come to them."""
        for block in self._state.waiting:
            block.pending -= self._done
        self._done = set()

    def _find(self, pool: Pool, stream: int, size_bytes: int) -> Block | None:
        """Best fit among free blocks, out of the pool (get_free_block)."""
        config = self._state.config
        if config.collects_garbage:
            pool.searches += 1
        block = _best(pool.at_least(stream, size_bytes))
        if block is None:
            return None
        limit = config.max_split_bytes
        if size_bytes < limit <= block.size_bytes:
            return None
        if size_bytes >= limit and block.size_bytes >= size_bytes + config.non_split_rounding_bytes:
            return None
        pool.remove(block)
        return block

    def _grow(self, pool: Pool, stream: int, size_bytes: int) -> Block | None:
        """From the device, releasing what it takes."""
        state = self._state
        if state.config.collects_garbage:
            collect_garbage(state)
        block = self._from_device(pool, stream, size_bytes)
        if block is None and release_some(state, pool, stream, size_bytes):
            block = self._from_device(pool, stream, size_bytes)
        if block is None:
            release_all(state)
            block = self._from_device(pool, stream, size_bytes)
        return block

    def _from_device(self, pool: Pool, stream: int, size_bytes: int) -> Block | None:
        """A new segment, or more of an expandable one (alloc_block)."""
        state = self._state
        new_bytes = segment_bytes(size_bytes, state.config)
        allowed_bytes = state.allowed_bytes
        if allowed_bytes is not None and state.reserved.now + new_bytes > allowed_bytes:
            return None
        if state.config.expandable_segments:
            return take_expandable(state, pool, stream, size_bytes)
        if not state.reserve(new_bytes):
            return None
        state.count_segment(1)
        return Block(state.device.new_address(new_bytes), new_bytes, stream, pool)

    def _split(self, block: Block, size_bytes: int) -> Block:
        """The low part, with the rest back in the pool; or the whole."""
        pool, rest_bytes = block.pool, block.size_bytes - size_bytes
        if not is_split(size_bytes, rest_bytes, pool.is_small, self._state.config):
            return block
        low = block.cut(size_bytes)
        pool.add_free(block)
        return low

    def _out_of_memory(self, request: Malloc, pool: Pool, size_bytes: int) -> OutOfMemory:
        state = self._state
        free_bytes = state.device.free_bytes
        assert free_bytes is not None
        if state.allowed_bytes is not None:
            free_bytes = min(free_bytes, max(state.allowed_bytes - state.reserved.now, 0))
        return OutOfMemory(
            malloc=request,
            rounded_bytes=size_bytes,
            segment_bytes=segment_bytes(size_bytes, state.config),
            device_free_bytes=free_bytes,
            reserved_bytes=state.reserved.now,
            allocated_bytes=state.allocated.now,
            largest_free_bytes=pool.largest_free_bytes(request.stream),
        )


def _best(fitting: Iterator[Block]) -> Block | None:
    """The first; of expandable ones the next is better as long as it can grow to less."""
    best = next(fitting, None)
    if best is None or best.expandable is None:
        return best
    for block in fitting:
        if expandable_bytes(block) >= expandable_bytes(best):
            break
        best = block
    return best
