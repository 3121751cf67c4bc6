"""The caching allocator's rules on cases worked out by hand: sizes, pools, fit, splits, merges.

The numbers are the rules' in torch 2.13's `c10/cuda/CUDACachingAllocator.cpp`. What happens on a
miss is in `test_release.py`, expandable segments are in `test_expandable.py`.
"""

from __future__ import annotations

import pytest

from planner.allocator import CachingAllocator, Malloc, OutOfMemory
from tests.planner.allocator.bench import KIB, MIB, Bench

# ---- 1: rounding ----


@pytest.mark.parametrize(
    ("size_bytes", "block_bytes"),
    [(1, 512), (511, 512), (512, 512), (513, 1024), (1024, 1024), (MIB + 1, MIB + 512)],
)
def test_sizes_are_rounded_to_512(size_bytes: int, block_bytes: int) -> None:
    bench = Bench()
    bench.take(size_bytes)
    assert bench.segments[0].blocks[0].size_bytes == block_bytes
    assert bench.segments[0].blocks[0].requested_bytes == size_bytes


@pytest.mark.parametrize(
    ("settings", "size_bytes", "block_bytes"),
    [
        # As test_allocator_settings in torch's test/test_cuda.py works out.
        ("roundup_power2_divisions:4", 84 * MIB, 96 * MIB),
        ("roundup_power2_divisions:[64:8,128:2,256:2,512:2,1024:1,>:1]", 84 * MIB, 88 * MIB),
        ("roundup_power2_divisions:[64:8,128:2,256:2,512:2,1024:1,>:1]", 400 * MIB, 512 * MIB),
        # A power of two stays; one division is none; small sizes go by 512.
        ("roundup_power2_divisions:4", 64 * MIB, 64 * MIB),
        ("roundup_power2_divisions:1", 84 * MIB + 1, 84 * MIB + 512),
        ("roundup_power2_divisions:4", 2048, 2048),
        ("roundup_power2_divisions:4", 2049, 2560),
        # Not above 512 x 16, where 16 divisions would be finer than 512.
        ("roundup_power2_divisions:16", 4097, 4608),
        ("roundup_power2_divisions:16", 8193, 8704),
        # Sizes below 1 MiB belong to the bucket of 1 MiB, those above 32 GiB to that of 32 GiB.
        ("roundup_power2_divisions:[1:2,2:1,>:1]", 600 * KIB, 768 * KIB),
        ("roundup_power2_divisions:[16384:1,32768:2]", 70 * 1024 * MIB, 96 * 1024 * MIB),
        ("roundup_power2_divisions:[16384:1,32768:2]", 17 * 1024 * MIB, 17 * 1024 * MIB),
    ],
)
def test_sizes_are_rounded_by_divisions(settings: str, size_bytes: int, block_bytes: int) -> None:
    failed = Bench(settings + ",per_process_memory_fraction:0.5", capacity=2).try_take(size_bytes)
    assert isinstance(failed, OutOfMemory)
    assert failed.rounded_bytes == block_bytes


def test_nothing_is_allocated_for_nothing() -> None:
    bench = Bench()
    empty = bench.take(0)
    assert bench.reserved == 0
    bench.allocator.record_stream(empty, 1)
    bench.give(empty)
    with pytest.raises(ValueError, match="not allocated"):
        bench.give(empty)


# ---- 2: pools ----


def test_up_to_1_mib_is_small() -> None:
    bench = Bench()
    bench.take(MIB)
    bench.take(MIB + 1)
    assert [segment.is_small for segment in bench.segments] == [True, False]
    assert [segment.size_bytes for segment in bench.segments] == [2 * MIB, 20 * MIB]


def test_a_small_request_takes_nothing_from_the_large_pool() -> None:
    bench = Bench()
    bench.give(bench.take(20 * MIB))
    bench.take(MIB)
    assert bench.sizes == [[-20 * MIB], [MIB, -MIB]]


def test_streams_have_pools_of_their_own() -> None:
    bench = Bench()
    bench.give(bench.take(20 * MIB, stream=1))
    bench.take(20 * MIB, stream=2)
    assert bench.reserved == 40 * MIB
    bench.take(20 * MIB, stream=1)
    assert bench.reserved == 40 * MIB


# ---- 3: best fit ----


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    bench = Bench()
    ids = [bench.take(size * MIB) for size in (40, 24, 30)]
    bench.give(*ids)
    assert bench.at(bench.take(23 * MIB)) == 40 * MIB


def test_of_equal_blocks_the_lowest_is_taken() -> None:
    bench = Bench()
    ids = [bench.take(24 * MIB) for _ in range(3)]
    bench.give(ids[2], ids[0], ids[1])
    assert bench.at(bench.take(24 * MIB)) == 0


def test_a_request_below_max_split_takes_no_block_of_it_or_more() -> None:
    for settings, reserved in (("", 30 * MIB), ("max_split_size_mb:30", 58 * MIB)):
        bench = Bench(settings)
        bench.give(bench.take(30 * MIB))
        bench.take(28 * MIB)
        assert bench.reserved == reserved


def test_a_request_of_max_split_takes_what_is_less_than_20_mib_larger() -> None:
    for size, reserved in ((32 * MIB, 50 * MIB), (30 * MIB + 512, 50 * MIB), (30 * MIB, 80 * MIB)):
        bench = Bench("max_split_size_mb:30")
        bench.give(bench.take(50 * MIB))
        bench.take(size)
        assert bench.reserved == reserved
    bench = Bench("max_split_size_mb:30,max_non_split_rounding_mb:21")
    bench.give(bench.take(50 * MIB))
    bench.take(30 * MIB)
    assert bench.sizes == [[50 * MIB]]


# ---- 5: segments ----


@pytest.mark.parametrize(
    ("settings", "size_bytes", "segment_bytes"),
    [
        ("", 1, 2 * MIB),
        ("", MIB, 2 * MIB),
        ("", MIB + 1, 20 * MIB),
        ("", 10 * MIB - 512, 20 * MIB),
        ("", 10 * MIB, 10 * MIB),
        ("", 10 * MIB + 1, 12 * MIB),
        ("", 22 * MIB, 22 * MIB),
        ("large_segment_size_mb:24", MIB + 1, 24 * MIB),
        ("large_segment_size_mb:24", 10 * MIB, 10 * MIB),
        ("large_segment_size_mb:24", MIB, 2 * MIB),
    ],
)
def test_segments_have_three_sizes(settings: str, size_bytes: int, segment_bytes: int) -> None:
    bench = Bench(settings)
    bench.take(size_bytes)
    assert bench.reserved == segment_bytes
    assert bench.usage.segments.now == 1


# ---- 6: splits ----


def test_a_large_block_keeps_a_rest_of_up_to_1_mib() -> None:
    bench = Bench()
    bench.give(bench.take(20 * MIB))
    whole = bench.take(19 * MIB)
    assert bench.sizes == [[20 * MIB]]
    assert bench.usage.allocated_bytes.now == 20 * MIB
    assert bench.usage.requested_bytes.now == 19 * MIB
    bench.give(whole)
    bench.take(19 * MIB - 512)
    assert bench.sizes == [[19 * MIB - 512, -MIB - 512]]


def test_a_small_block_keeps_no_rest() -> None:
    bench = Bench()
    low, _ = bench.take(MIB), bench.take(MIB)
    bench.give(low)
    low = bench.take(MIB - 512)
    assert bench.sizes == [[MIB - 512, -512, MIB]]
    bench.give(low)
    bench.take(MIB)
    assert bench.sizes == [[MIB, MIB]]


def test_a_request_of_max_split_keeps_the_whole_block() -> None:
    for settings, sizes in (("max_split_size_mb:31", [50 * MIB]), ("", [31 * MIB, -19 * MIB])):
        bench = Bench(settings)
        bench.give(bench.take(50 * MIB))
        bench.take(31 * MIB)
        assert bench.sizes == [sizes]


# ---- 7: the low part, and merges ----


def test_the_low_part_is_used() -> None:
    bench = Bench()
    ids = [bench.take(size) for size in (4 * MIB, 6 * MIB, 3 * MIB)]
    assert [bench.at(id) for id in ids] == [0, 4 * MIB, 10 * MIB]
    assert bench.sizes == [[4 * MIB, 6 * MIB, 3 * MIB, -7 * MIB]]


def test_free_neighbours_become_one() -> None:
    bench = Bench()
    a, b, c = (bench.take(size * MIB) for size in (4, 6, 3))
    bench.give(a)
    assert bench.sizes == [[-4 * MIB, 6 * MIB, 3 * MIB, -7 * MIB]]
    bench.give(c)
    assert bench.sizes == [[-4 * MIB, 6 * MIB, -10 * MIB]]
    bench.give(b)
    assert bench.sizes == [[-20 * MIB]]


def test_segments_never_become_one() -> None:
    bench = Bench()
    bench.give(bench.take(20 * MIB), bench.take(20 * MIB))
    bench.take(30 * MIB)
    assert bench.sizes == [[-20 * MIB], [-20 * MIB], [30 * MIB]]


# ---- 11: accounts ----


def test_peaks_stay() -> None:
    bench = Bench()
    bench.give(bench.take(30 * MIB - 1), bench.take(600))
    usage = bench.usage
    assert (usage.reserved_bytes.now, usage.reserved_bytes.peak) == (32 * MIB, 32 * MIB)
    assert (usage.allocated_bytes.now, usage.allocated_bytes.peak) == (0, 30 * MIB + 1024)
    assert (usage.requested_bytes.now, usage.requested_bytes.peak) == (0, 30 * MIB - 1 + 600)
    assert (usage.segments.now, usage.segments.peak) == (2, 2)
    assert usage.cached_bytes == 32 * MIB
    bench.allocator.empty_cache()
    assert bench.usage.reserved_bytes.now == 0
    assert bench.usage.reserved_bytes.peak == 32 * MIB


def test_an_id_is_allocated_once_and_freed_once() -> None:
    allocator = CachingAllocator()
    allocator.malloc(Malloc(7, 100))
    with pytest.raises(ValueError, match="id is 7, which is allocated"):
        allocator.malloc(Malloc(7, 100))
    allocator.free(7)
    with pytest.raises(ValueError, match="id is 7, which is not allocated"):
        allocator.free(7)
    with pytest.raises(ValueError, match="id is 8, which is not allocated"):
        allocator.record_stream(8, 1)


def test_a_size_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="size_bytes is -1"):
        CachingAllocator().malloc(Malloc(0, -1))


@pytest.mark.parametrize("capacity_bytes", [0, -5])
def test_a_device_has_memory(capacity_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"capacity_bytes is {capacity_bytes}"):
        CachingAllocator(capacity_bytes=capacity_bytes)


def test_a_fraction_is_one_of_something() -> None:
    with pytest.raises(ValueError, match="capacity_bytes is None"):
        Bench("per_process_memory_fraction:0.5")
