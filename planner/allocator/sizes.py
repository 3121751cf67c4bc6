"""The sizes of the caching allocator: of blocks, of segments, and what is split off.

Scope: arithmetic. Names in brackets are torch's (`c10/cuda/CUDACachingAllocator.cpp`).
"""

from __future__ import annotations

from planner.allocator.config import MIB, ROUNDUP_BUCKETS, AllocatorConfig

BLOCK_BYTES = 512
"""What blocks are multiples of (kMinBlockSize)."""

SMALL_BYTES = MIB
"""The largest block of the small pool (kSmallSize)."""

SMALL_SEGMENT_BYTES = 2 * MIB
"""kSmallBuffer."""

_OWN_SEGMENT_BYTES = 10 * MIB
"""From here on a request has a segment of its own size (kMinLargeAlloc)."""

_SEGMENT_UNIT_BYTES = 2 * MIB
"""What such segments are multiples of (kRoundLarge)."""


def block_bytes(size_bytes: int, config: AllocatorConfig) -> int:
    """A request of 1 or more, rounded up to the block that it takes (round_size)."""
    divisions = config.roundup_power2_divisions[_bucket(size_bytes)]
    if divisions > 1 and size_bytes > BLOCK_BYTES * divisions:
        return _next_division(size_bytes, divisions)
    return round_up(size_bytes, BLOCK_BYTES)


def segment_bytes(block: int, config: AllocatorConfig) -> int:
    """The segment that is allocated for a block (get_allocation_size)."""
    if block <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if block < _OWN_SEGMENT_BYTES:
        return config.large_segment_bytes
    return round_up(block, _SEGMENT_UNIT_BYTES)


def granule_bytes(is_small: bool, config: AllocatorConfig) -> int:
    """What an expandable segment grows by."""
    return SMALL_SEGMENT_BYTES if is_small else config.large_segment_bytes


def is_split(block: int, rest: int, is_small: bool, config: AllocatorConfig) -> bool:
    """Whether the `rest` beyond a block is split off, or handed out with it (should_split)."""
    if is_small or config.expandable_segments:
        return rest >= BLOCK_BYTES
    return block < config.max_split_bytes and rest > SMALL_BYTES


def round_up(size_bytes: int, unit_bytes: int) -> int:
    """The next multiple."""
    return -(-size_bytes // unit_bytes) * unit_bytes


def _bucket(size_bytes: int) -> int:
    """roundup_power2_divisions: by power of two, from 1 MiB on."""
    return min(max(size_bytes.bit_length() - MIB.bit_length(), 0), ROUNDUP_BUCKETS - 1)


def _next_division(size_bytes: int, divisions: int) -> int:
    """Up to one of the `divisions` equal steps between two powers of two, which stay."""
    floor = 1 << (size_bytes.bit_length() - 1)
    return round_up(size_bytes, floor // divisions)
