"""What is given back to the device: old blocks, some, or all that can be.

Scope: the three ways, in the order in which a malloc that found nothing tries them.
"""

from __future__ import annotations

from planner.allocator.blocks import Block, Pool, merge
from planner.allocator.config import UNLIMITED
from planner.allocator.expandable import unmap
from planner.allocator.state import State


def collect_garbage(state: State) -> None:
    """Release unsplit large blocks at least as old as their mean, again and again, until the
    reserved bytes are back at the threshold (garbage_collect_cached_blocks).
    """
    allowed = state.allowed_bytes
    assert allowed is not None
    limit_bytes = int(state.config.garbage_collection_threshold * allowed)
    to_reclaim = state.reserved.now - limit_bytes
    blocks = [block for block in state.large.free_blocks() if block.is_alone]
    while to_reclaim > 0 and blocks:
        mean_age = sum(block.age for block in blocks) / len(blocks)
        old = [b for b in blocks if b.expandable is None and b.age >= mean_age]
        if not old:
            return
        for block in old:
            to_reclaim -= block.size_bytes
            release_segment(state, block)
        blocks = [block for block in blocks if block not in old]


def release_some(state: State, pool: Pool, stream: int, block_bytes: int) -> bool:
    """With a `max_split_size`: release the smallest block of that size or more that has room, else
    as many as it takes, the largest first. Whether that was enough; nothing is put back if not
    (release_available_cached_blocks).
    """
    least_bytes = state.config.max_split_bytes
    if least_bytes == UNLIMITED or state.config.expandable_segments:
        return False
    wanted_bytes = max(block_bytes, least_bytes)
    fitting = next(pool.at_least(stream, wanted_bytes), None)
    if fitting is not None:
        release_segment(state, fitting)
        return True
    released_bytes = 0
    for block in reversed(list(pool.at_least(stream, least_bytes))):
        if released_bytes >= wanted_bytes:
            break
        released_bytes += block.size_bytes
        release_segment(state, block)
    return released_bytes >= wanted_bytes


def release_all(state: State) -> None:
    """Wait for the streams, then release every segment that is free from end to end, and the free
    granules of expandable ones (release_cached_blocks).
    """
    settle(state, None)
    for pool in (state.large, state.small):
        for block in pool.free_blocks():
            if block.expandable is not None:
                unmap(state, block)
            elif block.is_alone:
                release_segment(state, block)


def release_segment(state: State, block: Block) -> None:
    """A free block that is a whole segment (release_block)."""
    assert block.is_alone
    block.pool.remove(block)
    state.unreserve(block.size_bytes)
    state.count_segment(-1)


def settle(state: State, done: set[int] | None) -> None:
    """Free what only waited for the streams `done`; None: for any (process_events, and
    synchronize_and_free_events).
    """
    for block in list(state.waiting):
        block.pending = set() if done is None else block.pending - done
        if not block.pending:
            state.waiting.remove(block)
            block.is_waiting = False
            free_block(state, block)


def free_block(state: State, block: Block) -> None:
    """Into the pool, with the free neighbours taken in (free_block)."""
    state.deactivate(block)
    merge(block, block.previous)
    merge(block, block.next)
    block.pool.add_free(block)
