"""Expandable segments: addresses are reserved once, memory is mapped to them by the granule.

Scope: finding room in them, mapping and unmapping. One is made for a stream and pool, and another
when its addresses run out.
"""

from __future__ import annotations

from planner.allocator.blocks import Block, Pool, merge
from planner.allocator.sizes import granule_bytes
from planner.allocator.state import State


def take_expandable(state: State, pool: Pool, stream: int, size_bytes: int) -> Block | None:
    """A free block of at least `size_bytes`, mapped as far as it was not, and in no set; None when
    the device has not enough. What was mapped until then stays (try_allocate_expandable_block).
    """
    block: Block | None = _find(state, pool, stream, size_bytes)
    assert block is not None
    if not block.is_mapped:
        block = _map(state, block, min(block.size_bytes, size_bytes))
    while block is not None and block.size_bytes < size_bytes:
        following = block.next
        assert following is not None
        missing = size_bytes - block.size_bytes
        block = _map(state, following, min(missing, following.size_bytes))
    if block is not None:
        pool.remove(block)
    return block


def unmap(state: State, block: Block) -> None:
    """Give the whole granules of a free block back; what is left of it at its ends stays free. A
    segment without any mapped memory goes (unmap_block).
    """
    addresses = block.expandable
    assert addresses is not None
    start, stop = addresses.up(block.address), addresses.down(block.stop)
    if start >= stop:
        return
    pool = block.pool
    pool.remove(block)
    if start > block.address:
        pool.add_free(block.cut(start - block.address))
    if stop < block.stop:
        rest, block = block, block.cut(stop - block.address)
        pool.add_free(rest)
    block.is_mapped = False
    state.unreserve(stop - start)
    merge(block, block.previous)
    merge(block, block.next)
    if block.is_alone:
        state.expandable.remove(addresses)
        state.count_segment(-1)
    else:
        pool.add_unmapped(block)


def expandable_bytes(block: Block) -> int:
    """What a free block can grow to: its size, and that of the unmapped stretch after it."""
    following = block.next
    grows = following is not None and not following.is_mapped
    return block.size_bytes + (following.size_bytes if grows and following is not None else 0)


def _find(state: State, pool: Pool, stream: int, size_bytes: int) -> Block:
    """The lowest free or unmapped block from which on `size_bytes` of addresses are idle; a new
    segment's when there is none (find_expandable_block).
    """
    for block in pool.unmapped_blocks(stream):
        before = block.previous
        first = before if before is not None and before.is_idle else block
        if _is_room(first, size_bytes):
            return first
    addresses = state.device.reserve(granule_bytes(pool.is_small, state.config))
    block = Block(addresses.start, addresses.size_bytes, stream, pool, addresses, is_mapped=False)
    pool.add_unmapped(block)
    state.expandable.append(addresses)
    state.count_segment(1)
    return block


def _is_room(first: Block, size_bytes: int) -> bool:
    block: Block | None = first
    while size_bytes > 0 and block is not None and block.is_idle:
        size_bytes -= block.size_bytes
        block = block.next
    return size_bytes <= 0


def _map(state: State, block: Block, size_bytes: int) -> Block | None:
    """Map the first `size_bytes` of an unmapped block, in whole granules: a free block, with the
    free neighbours taken in. None, and nothing done, when the device has not enough (map_block).
    """
    assert block.expandable is not None
    mapped_bytes = block.expandable.up(block.address + size_bytes) - block.address
    if not state.reserve(mapped_bytes):
        return None
    pool = block.pool
    pool.remove(block)
    if mapped_bytes < block.size_bytes:
        rest, block = block, block.cut(mapped_bytes)
        pool.add_unmapped(rest)
    block.is_mapped = True
    merge(block, block.previous)
    merge(block, block.next)
    pool.add_free(block)
    return block
