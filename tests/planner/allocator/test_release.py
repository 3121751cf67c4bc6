"""What happens when nothing that is free will do: new segments, releases, out of memory, and blocks
that other streams still use.

Worked out by hand from torch 2.13's `malloc`, `garbage_collect_cached_blocks`,
`release_available_cached_blocks` and `release_cached_blocks`.
"""

from __future__ import annotations

import pytest

from planner.allocator import (
    AllocatorConfig,
    EmptyCache,
    Event,
    Free,
    Malloc,
    OutOfMemory,
    RecordStream,
    StreamDone,
    replay,
)
from tests.planner.allocator.bench import MIB, Bench

# ---- all that is unsplit ----


def test_all_that_is_unsplit_is_released_before_giving_up() -> None:
    bench = Bench(capacity=64 * MIB)
    bench.take(24 * MIB)
    bench.give(bench.take(30 * MIB), bench.take(1))
    bench.take(34 * MIB)
    assert bench.sizes == [[24 * MIB], [34 * MIB]]
    assert bench.usage.segments.now == 2


def test_nothing_is_released_as_long_as_the_device_has_room() -> None:
    bench = Bench(capacity=64 * MIB)
    bench.give(bench.take(30 * MIB))
    bench.take(34 * MIB)
    assert bench.sizes == [[-30 * MIB], [34 * MIB]]


def test_a_split_segment_stays() -> None:
    bench = Bench(capacity=64 * MIB)
    low, high = bench.take(10 * MIB - 512), bench.take(10 * MIB - 512)
    bench.give(high)
    failed = bench.try_take(60 * MIB)
    assert isinstance(failed, OutOfMemory)
    assert failed.segment_bytes == failed.rounded_bytes == 60 * MIB
    assert failed.device_free_bytes == 44 * MIB
    assert failed.reserved_bytes == 20 * MIB
    assert failed.allocated_bytes == 10 * MIB - 512
    assert failed.cached_bytes == failed.largest_free_bytes == 10 * MIB + 512
    assert not failed.is_fragmentation
    bench.give(low)
    bench.take(60 * MIB)


def test_fragmentation_is_told_from_lack() -> None:
    bench = Bench(capacity=60 * MIB)
    ids = [bench.take(6 * MIB) for _ in range(9)]
    bench.give(*ids[::2])
    failed = bench.try_take(12 * MIB)
    assert isinstance(failed, OutOfMemory)
    assert failed.is_fragmentation
    assert (failed.device_free_bytes, failed.cached_bytes) == (0, 36 * MIB)
    assert str(failed) == (
        "out of memory: tried to allocate 12,582,912 bytes (a segment of 12,582,912) with 0 free "
        "on the device; 25,165,824 are allocated, and 37,748,736 reserved but unallocated, "
        "8,388,608 of them in one block"
    )


# ---- some, with max_split_size ----


def test_the_smallest_that_is_large_enough_goes() -> None:
    bench = Bench("max_split_size_mb:24", capacity=144 * MIB)
    bench.give(*[bench.take(size * MIB) for size in (24, 50, 60)])
    bench.take(26 * MIB)  # 50 is 24 too large to be handed out
    assert bench.sizes == [[-24 * MIB], [-60 * MIB], [26 * MIB]]


def test_else_the_largest_go_until_it_is_enough() -> None:
    bench = Bench("max_split_size_mb:24", capacity=80 * MIB)
    bench.give(*[bench.take(size * MIB) for size in (25, 24, 26)])
    bench.take(50 * MIB)
    assert bench.sizes == [[-24 * MIB], [50 * MIB]]


def test_blocks_below_max_split_do_not_count() -> None:
    """22 and 30 are released, then all, the 2 of the small pool among it."""
    bench = Bench("max_split_size_mb:24", capacity=80 * MIB)
    bench.give(*[bench.take(size) for size in (22 * MIB, 30 * MIB, 512)])
    bench.take(56 * MIB)
    assert bench.sizes == [[56 * MIB]]


def test_other_streams_blocks_go_last() -> None:
    bench = Bench("max_split_size_mb:24", capacity=100 * MIB)
    bench.give(bench.take(30 * MIB, stream=1), bench.take(50 * MIB))
    bench.take(28 * MIB)
    assert bench.sizes == [[-30 * MIB], [28 * MIB]]


# ---- garbage ----


def aged(threshold: float) -> Bench:
    """160 MiB are allowed. In use: 20 MiB of stream 1. Free: 30 MiB since 3 searches ago, 32 MiB
    since 1 (counting the next), and 2 MiB of the small pool.
    """
    bench = Bench(
        f"garbage_collection_threshold:{threshold},per_process_memory_fraction:0.8", 200 * MIB
    )
    ids = [bench.take(size * MIB, stream) for size, stream in ((20, 1), (30, 0), (32, 0))]
    bench.give(bench.take(512), ids[1], ids[0])
    bench.give(bench.take(20 * MIB, 1))
    bench.take(20 * MIB, 1)
    bench.give(ids[2])
    assert bench.reserved == 84 * MIB
    return bench


def test_what_is_older_than_the_mean_goes() -> None:
    bench = aged(0.5)
    bench.take(34 * MIB)
    assert bench.sizes == [[20 * MIB], [-32 * MIB], [-2 * MIB], [34 * MIB]]


def test_it_goes_on_until_the_threshold() -> None:
    bench = aged(0.3)
    bench.take(34 * MIB)
    assert bench.sizes == [[20 * MIB], [-2 * MIB], [34 * MIB]]


def test_below_the_threshold_nothing_goes() -> None:
    bench = aged(0.6)
    bench.take(34 * MIB)
    assert bench.reserved == 118 * MIB


def test_what_is_found_free_starts_no_collection() -> None:
    bench = aged(0.3)
    bench.take(30 * MIB)
    assert bench.reserved == 84 * MIB


def test_of_one_age_all_go() -> None:
    bench = Bench("garbage_collection_threshold:0.5,per_process_memory_fraction:0.8", 200 * MIB)
    bench.give(*[bench.take(size * MIB) for size in (20, 30, 32)])
    bench.take(40 * MIB)
    assert bench.sizes == [[40 * MIB]]


def test_split_blocks_are_no_garbage() -> None:
    bench = Bench("garbage_collection_threshold:0.5,per_process_memory_fraction:0.8", 200 * MIB)
    bench.take(4 * MIB)
    bench.give(bench.take(70 * MIB))
    bench.take(72 * MIB)
    assert bench.sizes == [[4 * MIB, -16 * MIB], [72 * MIB]]


def test_a_process_has_its_fraction_and_no_more() -> None:
    bench = Bench("per_process_memory_fraction:0.5", 200 * MIB)
    bench.take(60 * MIB)
    failed = bench.try_take(42 * MIB)
    assert isinstance(failed, OutOfMemory)
    assert failed.device_free_bytes == 40 * MIB
    bench.take(40 * MIB)


# ---- other streams ----


def test_a_block_waits_for_a_stream_and_that_is_seen_at_the_next_malloc() -> None:
    bench = Bench()
    block = bench.take(20 * MIB)
    bench.allocator.record_stream(block, 1)
    bench.give(block)
    assert bench.usage.allocated_bytes.now == 0
    assert bench.usage.active_bytes.now == 20 * MIB
    bench.take(20 * MIB)
    assert bench.reserved == 40 * MIB
    bench.allocator.stream_done(1)
    assert bench.usage.active_bytes.now == 40 * MIB
    bench.take(20 * MIB)
    assert bench.reserved == 40 * MIB
    assert bench.usage.requested_bytes.now == 40 * MIB


def test_its_own_stream_is_no_other() -> None:
    bench = Bench()
    block = bench.take(20 * MIB, stream=3)
    bench.allocator.record_stream(block, 3)
    bench.give(block)
    assert bench.usage.active_bytes.now == 0


def test_all_streams_have_to_be_done_and_after_the_free() -> None:
    bench = Bench()
    block = bench.take(20 * MIB)
    bench.allocator.record_stream(block, 1)
    bench.allocator.record_stream(block, 2)
    bench.allocator.stream_done(1)
    bench.give(block)
    bench.allocator.stream_done(2)
    bench.take(512)
    assert bench.sizes == [[20 * MIB], [512, -2 * MIB + 512]]
    bench.allocator.stream_done(1)
    bench.take(512)
    assert bench.sizes == [[-20 * MIB], [512, 512, -2 * MIB + 1024]]


def test_a_waiting_block_is_no_free_neighbour() -> None:
    bench = Bench()
    low, high = bench.take(4 * MIB), bench.take(4 * MIB)
    bench.allocator.record_stream(low, 1)
    bench.give(low, high)
    assert bench.sizes == [[4 * MIB, -16 * MIB]]


def test_it_waits_for_the_malloc_too() -> None:
    """Its stream is done, and another block has begun to wait; only a malloc looks."""
    bench = Bench()
    low, high, other = bench.take(4 * MIB), bench.take(4 * MIB), bench.take(512)
    bench.allocator.record_stream(low, 1)
    bench.give(low)
    bench.allocator.stream_done(1)
    bench.allocator.record_stream(other, 2)
    bench.give(other, high)
    assert bench.sizes == [[4 * MIB, -16 * MIB], [512, -2 * MIB + 512]]
    bench.take(20 * MIB)
    assert bench.sizes == [[20 * MIB], [512, -2 * MIB + 512]]


def test_streams_are_waited_for_before_giving_up() -> None:
    bench = Bench(capacity=30 * MIB)
    block = bench.take(20 * MIB)
    bench.allocator.record_stream(block, 1)
    bench.give(block)
    bench.take(30 * MIB)
    assert bench.sizes == [[30 * MIB]]


# ---- a whole sequence ----


def test_a_sequence_ends_at_the_first_failure() -> None:
    events: list[Event] = [
        Malloc(0, 20 * MIB),
        RecordStream(0, 1),
        Free(0),
        StreamDone(1),
        Malloc(1, 20 * MIB),
        Free(1),
        EmptyCache(),
        Malloc(2, 41 * MIB),
        Malloc(3, 1),
    ]
    result = replay(events, capacity_bytes=40 * MIB)
    assert result.events == 7
    assert result.out_of_memory is not None
    assert result.out_of_memory.malloc == Malloc(2, 41 * MIB)
    assert result.usage.reserved_bytes.peak == 20 * MIB
    assert result.segments == ()
    unbounded = replay(events)
    assert (unbounded.events, unbounded.out_of_memory) == (9, None)
    assert unbounded.usage.reserved_bytes.now == 44 * MIB


def test_settings_reach_the_allocator() -> None:
    config = AllocatorConfig.parse("expandable_segments:True")
    result = replay([Malloc(0, 30 * MIB)], config)
    assert result.usage.reserved_bytes.now == 40 * MIB
    assert result.segments[0].is_expandable


def test_a_bad_event_is_named() -> None:
    with pytest.raises(ValueError, match=r"^event 1, Free\(id=5\): id is 5, which is not"):
        replay([Malloc(0, 1), Free(5)])
