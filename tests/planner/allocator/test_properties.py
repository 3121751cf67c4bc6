"""What holds for any sequence of allocations, and that a second model says the same."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings

from planner.allocator import (
    AllocatorConfig,
    BlockView,
    CachingAllocator,
    EmptyCache,
    Event,
    Free,
    Malloc,
    OutOfMemory,
    RecordStream,
    Segment,
    StreamDone,
)
from tests.planner.allocator.model import Model
from tests.planner.allocator.strategies import capacities, configs, event_lists

EXAMPLES = 100


def run(allocator: CachingAllocator, event: Event) -> OutOfMemory | None:
    result: int | OutOfMemory | None = None
    match event:
        case Malloc():
            result = allocator.malloc(event)
        case Free():
            allocator.free(event.id)
        case RecordStream():
            allocator.record_stream(event.id, event.stream)
        case StreamDone():
            allocator.stream_done(event.stream)
        case EmptyCache():
            allocator.empty_cache()
    return result if isinstance(result, OutOfMemory) else None


def state_of(block: BlockView) -> str:
    return "used" if block.is_allocated else "waiting" if block.is_active else "free"


def check_segments(segments: tuple[Segment, ...], live: dict[int, int]) -> None:
    """Nothing overlaps, nothing is left out, free neighbours are one, everybody has room."""
    end = 0
    seen: dict[int, int] = {}
    for segment in segments:
        assert segment.address >= end
        end = segment.address
        for block in segment.blocks:
            assert block.address == end
            assert block.size_bytes > 0
            end += block.size_bytes
            if block.is_allocated:
                assert block.id is not None
                seen[block.id] = block.requested_bytes
                assert block.size_bytes >= block.requested_bytes
        assert end == segment.address + segment.size_bytes
        states = [state_of(block) for block in segment.blocks]
        assert ("free", "free") not in list(pairwise(states))
    assert seen == live


@settings(max_examples=EXAMPLES, deadline=None)
@given(event_lists(), configs, capacities)
def test_blocks_never_overlap_and_figures_add_up(
    events: list[Event], config: AllocatorConfig, capacity_bytes: int
) -> None:
    allocator = CachingAllocator(config, capacity_bytes=capacity_bytes)
    live: dict[int, int] = {}
    for event in events:
        if run(allocator, event) is not None:
            break
        if isinstance(event, Malloc) and event.size_bytes:
            live[event.id] = event.size_bytes
        if isinstance(event, Free):
            live.pop(event.id, None)
        segments, usage = allocator.snapshot(), allocator.usage
        check_segments(segments, live)
        blocks = [block for segment in segments for block in segment.blocks]
        assert usage.reserved_bytes.now == sum(segment.size_bytes for segment in segments)
        assert usage.allocated_bytes.now == sum(b.size_bytes for b in blocks if b.is_allocated)
        assert usage.active_bytes.now == sum(b.size_bytes for b in blocks if b.is_active)
        assert usage.requested_bytes.now == sum(b.requested_bytes for b in blocks)
        assert capacity_bytes >= usage.reserved_bytes.now >= usage.active_bytes.now
        assert usage.active_bytes.now >= max(usage.allocated_bytes.now, usage.requested_bytes.now)


@settings(max_examples=EXAMPLES, deadline=None)
@given(event_lists(streams=False), configs, capacities)
def test_reserved_allocated_requested(
    events: list[Event], config: AllocatorConfig, capacity_bytes: int
) -> None:
    allocator = CachingAllocator(config, capacity_bytes=capacity_bytes)
    for event in events:
        if run(allocator, event) is not None:
            break
        usage = allocator.usage
        assert usage.allocated_bytes == usage.active_bytes
        for figure in ("now", "peak"):
            reserved = getattr(usage.reserved_bytes, figure)
            allocated = getattr(usage.allocated_bytes, figure)
            assert reserved >= allocated >= getattr(usage.requested_bytes, figure)


@settings(max_examples=2 * EXAMPLES, deadline=None)
@given(event_lists(), configs, capacities)
def test_a_second_model_says_the_same(
    events: list[Event], config: AllocatorConfig, capacity_bytes: int
) -> None:
    allocator = CachingAllocator(config, capacity_bytes=capacity_bytes)
    model = Model(config, capacity_bytes)
    for event in events:
        failure = run(allocator, event)
        assert (failure is None) == model.run(event), event
        usage = allocator.usage
        gauges = (
            usage.reserved_bytes,
            usage.allocated_bytes,
            usage.active_bytes,
            usage.requested_bytes,
        )
        assert [gauge.now for gauge in gauges] == model.figures(), event
        assert [gauge.peak for gauge in gauges] == model.peaks, event
        stretches = [
            [(block.size_bytes, state_of(block)) for block in segment.blocks]
            for segment in allocator.snapshot()
        ]
        assert stretches == model.stretches(), event
        if failure is not None:
            break


@settings(max_examples=EXAMPLES, deadline=None)
@given(event_lists(), configs, capacities)
def test_all_goes_back_when_all_is_freed(
    events: list[Event], config: AllocatorConfig, capacity_bytes: int
) -> None:
    allocator = CachingAllocator(config, capacity_bytes=capacity_bytes)
    live: set[int] = set()
    for event in events:
        if run(allocator, event) is not None:
            break
        live |= {event.id} if isinstance(event, Malloc) else set()
        live -= {event.id} if isinstance(event, Free) else set()
    for id in live:
        allocator.free(id)
    allocator.empty_cache()
    usage = allocator.usage
    gauges = (usage.reserved_bytes, usage.allocated_bytes, usage.requested_bytes)
    assert [gauge.now for gauge in gauges] == [0, 0, 0]
    assert allocator.snapshot() == ()
