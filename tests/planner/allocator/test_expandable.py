"""Expandable segments, on cases worked out by hand from torch 2.13's `find_expandable_block`,
`map_block`, `unmap_block` and `get_free_block`. Large granules are 20 MiB, small ones 2 MiB.
"""

from __future__ import annotations

from planner.allocator import OutOfMemory
from tests.planner.allocator.bench import MIB, Bench

GROWING = "expandable_segments:True"


def test_a_segment_grows_by_granules() -> None:
    bench = Bench(GROWING)
    bench.take(30 * MIB)
    assert bench.sizes == [[30 * MIB, -10 * MIB]]
    bench.take(5 * MIB)
    assert bench.sizes == [[30 * MIB, 5 * MIB, -5 * MIB]]
    bench.take(10 * MIB)
    assert bench.sizes == [[30 * MIB, 5 * MIB, 10 * MIB, -15 * MIB]]
    assert bench.usage.segments.now == 1
    assert bench.segments[0].is_expandable


def test_small_blocks_have_small_granules() -> None:
    bench = Bench(GROWING)
    bench.take(MIB)
    bench.take(MIB + 512)
    assert [segment.size_bytes for segment in bench.segments] == [2 * MIB, 20 * MIB]
    assert bench.usage.segments.now == 2


def test_the_granule_is_the_large_segment() -> None:
    bench = Bench(GROWING + ",large_segment_size_mb:24")
    bench.take(MIB + 512)
    assert bench.reserved == 24 * MIB


def test_large_blocks_are_split_at_512_too() -> None:
    bench = Bench(GROWING)
    bench.take(20 * MIB - 512)
    assert bench.sizes == [[20 * MIB - 512, -512]]


def test_each_stream_has_its_own() -> None:
    bench = Bench(GROWING)
    bench.give(bench.take(20 * MIB, stream=1))
    bench.take(20 * MIB, stream=2)
    assert bench.sizes == [[-20 * MIB], [20 * MIB]]


def test_a_block_that_cannot_grow_is_taken_before_one_that_can() -> None:
    """The smallest that fits are the 6 MiB at the end; but they could become anything."""
    bench = Bench(GROWING)
    first, _ = bench.take(12 * MIB), bench.take(2 * MIB)
    bench.give(first)
    assert bench.sizes == [[-12 * MIB, 2 * MIB, -6 * MIB]]
    assert bench.at(bench.take(5 * MIB)) == 0


def test_of_blocks_that_grow_to_the_same_the_lowest_is_taken() -> None:
    bench = Bench(GROWING)
    ids = [bench.take(size * MIB) for size in (12, 2, 12, 2)]
    bench.give(ids[2], ids[0])
    assert bench.at(bench.take(12 * MIB)) == 0


def test_whole_granules_go_back_and_are_mapped_again_from_the_lowest() -> None:
    bench = Bench(GROWING, capacity=120 * MIB)
    first, _ = bench.take(30 * MIB), bench.take(30 * MIB)
    bench.give(first)
    other = bench.take(80 * MIB, stream=1)
    assert bench.sizes == [[-10 * MIB, 30 * MIB], [80 * MIB]]
    assert bench.usage.segments.now == 2
    bench.give(other)
    again = bench.take(25 * MIB)
    assert bench.at(again) == 0
    assert bench.sizes == [[25 * MIB, -5 * MIB, 30 * MIB]]
    assert (bench.usage.segments.now, bench.usage.segments.peak) == (1, 2)


def hollow() -> tuple[Bench, int, int]:
    """[10, 10, 40 unmapped, 20], and the ids of the first two."""
    bench = Bench(GROWING)
    a, b, c, _ = (bench.take(size * MIB) for size in (10, 10, 40, 20))
    bench.give(c)
    bench.allocator.empty_cache()
    assert bench.sizes == [[10 * MIB, 10 * MIB], [20 * MIB]]
    return bench, a, b


def test_a_hole_is_filled_before_the_end_grows() -> None:
    bench, a, _ = hollow()
    bench.give(a)
    assert bench.at(bench.take(30 * MIB)) == 20 * MIB
    assert bench.sizes == [[-10 * MIB, 10 * MIB, 30 * MIB, -10 * MIB, 20 * MIB]]


def test_a_free_block_before_a_hole_is_filled_up_with_it() -> None:
    bench, a, b = hollow()
    bench.give(a, b)
    assert bench.at(bench.take(50 * MIB)) == 0
    assert bench.sizes == [[50 * MIB, -10 * MIB, 20 * MIB]]


def test_a_hole_that_is_too_small_is_left() -> None:
    bench, a, _ = hollow()
    bench.give(a)
    assert bench.at(bench.take(50 * MIB)) == 80 * MIB
    assert bench.sizes == [[-10 * MIB, 10 * MIB], [20 * MIB, 50 * MIB, -10 * MIB]]


def test_another_segment_is_made_when_the_addresses_run_out() -> None:
    """Of 80 MiB, 9/8 are 90, in granules 100: between 20 and 60 there are 40, from 80 on 20."""
    bench = Bench(GROWING, capacity=80 * MIB)
    ids = [bench.take(size * MIB) for size in (20, 40, 20)]
    bench.give(ids[1])
    assert isinstance(bench.try_take(50 * MIB), OutOfMemory)
    assert bench.usage.segments.now == 2


def test_nothing_is_mapped_when_the_device_has_not_enough() -> None:
    bench = Bench(GROWING, capacity=50 * MIB)
    bench.take(20 * MIB)
    failed = bench.try_take(30 * MIB)
    assert isinstance(failed, OutOfMemory)
    assert failed.device_free_bytes == 30 * MIB
    assert bench.sizes == [[20 * MIB]]
    bench.take(20 * MIB)


def test_empty_cache_leaves_what_is_less_than_a_granule() -> None:
    bench = Bench(GROWING)
    ids = [bench.take(size * MIB) for size in (15, 50, 15)]
    bench.give(ids[1])
    bench.allocator.empty_cache()
    assert bench.sizes == [[15 * MIB, -5 * MIB], [-5 * MIB, 15 * MIB]]
    assert bench.reserved == 40 * MIB


def test_max_split_releases_none_of_them_by_itself() -> None:
    """40 MiB may not take the free 60 (20 MiB more); all is released, and 0 is the lowest place."""
    bench = Bench(GROWING + ",max_split_size_mb:24", capacity=100 * MIB)
    ids = [bench.take(60 * MIB), bench.take(20 * MIB)]
    bench.give(ids[0])
    assert bench.at(bench.take(40 * MIB)) == 0
    assert bench.sizes == [[40 * MIB], [20 * MIB]]
