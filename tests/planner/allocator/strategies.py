"""Random sequences of events, and random settings.

Scope: hypothesis strategies. Sizes lie at and beside the allocator's own thresholds, since between
them all are alike.
"""

from __future__ import annotations

from hypothesis import strategies as st

from planner.allocator import (
    AllocatorConfig,
    EmptyCache,
    Event,
    Free,
    Malloc,
    RecordStream,
    StreamDone,
)

MIB = 2**20
_EDGES = (512, MIB, 2 * MIB, 10 * MIB, 19 * MIB, 20 * MIB, 21 * MIB, 32 * MIB, 40 * MIB, 64 * MIB)

sizes = st.one_of(
    st.builds(
        lambda edge, off: max(0, edge + off), st.sampled_from(_EDGES), st.integers(-513, 513)
    ),
    st.integers(0, 4 * MIB),
    st.integers(1, 80).map(lambda mib: mib * MIB),
)

configs = st.builds(
    AllocatorConfig,
    expandable_segments=st.booleans(),
    max_split_bytes=st.sampled_from([2**64 - 1, 24 * MIB, 40 * MIB]),
    max_non_split_rounding_bytes=st.sampled_from([None, 24 * MIB]),
    large_segment_bytes=st.sampled_from([20 * MIB, 24 * MIB]),
    roundup_power2_divisions=st.sampled_from([(0,) * 16, (4,) * 16, (1, 2, 4, 8) * 4]),
    garbage_collection_threshold=st.sampled_from([0.0, 0.2, 0.6]),
    memory_fraction=st.sampled_from([1.0, 0.9]),
)

capacities = st.sampled_from([64 * MIB, 150 * MIB, 1024 * MIB])


@st.composite
def event_lists(draw: st.DrawFn, streams: bool = True) -> list[Event]:
    """Valid as long as no allocation fails. Without `streams` all is on one."""
    events: list[Event] = []
    live: list[int] = []
    kinds = ["malloc"] * 5 + ["free"] * 4 + ["empty"]
    kinds += ["record", "record", "done", "done"] if streams else []
    for id in range(draw(st.integers(1, 40))):
        kind = draw(st.sampled_from(kinds))
        stream = draw(st.integers(0, 1)) if streams else 0
        if kind == "malloc" or (kind in ("free", "record") and not live):
            events.append(Malloc(id, draw(sizes), stream))
            live.append(id)
        elif kind == "free":
            events.append(Free(live.pop(draw(st.integers(0, len(live) - 1)))))
        elif kind == "record":
            events.append(RecordStream(draw(st.sampled_from(live)), stream))
        else:
            events.append(StreamDone(stream) if kind == "done" else EmptyCache())
    return events
