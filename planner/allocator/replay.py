"""A sequence of allocations, run through the simulated allocator.

Scope: one function. It ends at the first allocation that fails, as a training step does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planner.allocator.allocator import CachingAllocator
from planner.allocator.config import AllocatorConfig
from planner.allocator.contracts import (
    EmptyCache,
    Event,
    Free,
    Malloc,
    OutOfMemory,
    RecordStream,
    Segment,
    StreamDone,
    Usage,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What came of it: `events` that were run, the usage and the segments after them, and the
    allocation that failed, if one did.
    """

    events: int
    usage: Usage
    segments: tuple[Segment, ...]
    out_of_memory: OutOfMemory | None = None


def replay(
    events: Iterable[Event],
    config: AllocatorConfig | None = None,
    *,
    capacity_bytes: int | None = None,
) -> Replay:
    """Run `events` in an allocator of their own.

    Raises:
        ValueError: for an event that cannot be (a size below 0, an id that is allocated twice or
            freed without being so); says which in the sequence. Also for a bad capacity.
    """
    allocator = CachingAllocator(config, capacity_bytes=capacity_bytes)
    count, failure = 0, None
    for event in events:
        try:
            failure = _run(allocator, event)
        except ValueError as error:
            raise ValueError(f"event {count}, {event}: {error}") from error
        if failure is not None:
            break
        count += 1
    return Replay(
        events=count,
        usage=allocator.usage,
        segments=allocator.snapshot(),
        out_of_memory=failure,
    )


def _run(allocator: CachingAllocator, event: Event) -> OutOfMemory | None:
    match event:
        case Malloc():
            result = allocator.malloc(event)
            return result if isinstance(result, OutOfMemory) else None
        case Free():
            allocator.free(event.id)
        case RecordStream():
            allocator.record_stream(event.id, event.stream)
        case StreamDone():
            allocator.stream_done(event.stream)
        case EmptyCache():
            allocator.empty_cache()
    return None
