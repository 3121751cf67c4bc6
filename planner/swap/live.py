"""What is live while a layer's segments run, from its traces.

Scope: one direction of one layer. What its tiles store is taken off as the simulation counts it: in
forward from the start of a tile's `post`, in backward until the end of its `pre`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.swap.contracts import SegmentBytes
from planner.trace.contracts import Block, LayerTrace, Pass, Repeat, Segment
from planner.trace.live import live_bytes


def live_in(layer: LayerTrace, direction: Pass, start_bytes: int) -> SegmentBytes:
    """Of a layer whose tiles are all recomputed, with that of one whose tiles are all stored.
    `start_bytes` are live when the direction begins, without what tiles store.
    """
    last_tokens = layer.tokens - (layer.tiles - 1) * layer.tile_tokens
    last_bytes = round(layer.stored_bytes * last_tokens / layer.tile_tokens)
    stored_bytes = (layer.tiles - 1) * layer.stored_bytes + last_bytes

    def in_forward(segment: Segment, tile: int) -> int:
        if segment in (Segment.PRE, Segment.CORE):
            return 0
        return min((tile + 1) * layer.stored_bytes, stored_bytes)

    def in_backward(segment: Segment, tile: int) -> int:
        # A tile's graph goes when the next one's is taken, after that one's first operation.
        gone = max(tile - 1, 0) if segment is Segment.PRE else 0
        return stored_bytes - gone * layer.stored_bytes

    if direction is Pass.FORWARD:
        none, every, counted = layer.recomputed.forward, layer.kept.forward, in_forward
    else:
        none, every, counted = layer.recomputed.backward, layer.kept.backward, in_backward
    held_bytes = 0 if direction is Pass.FORWARD else stored_bytes
    recomputed = _peaks(none, layer.tiles, start_bytes, lambda segment, tile: 0)
    stored = _peaks(every, layer.tiles, start_bytes + held_bytes, counted)
    return replace(recomputed, stored=stored)


@dataclass(frozen=True, slots=True)
class _Moment:
    """An operation: its segment and tile, and the bytes live while it runs beyond the block's
    start.
    """

    segment: Segment
    tile: int
    live_bytes: int


def _peaks(
    block: Block, tiles: int, start_bytes: int, counted: Callable[[Segment, int], int]
) -> SegmentBytes:
    """The most of each segment, less what is counted apart."""
    pre = core = post = last = 0
    for moment in _moments(block, tiles):
        live = start_bytes + moment.live_bytes - counted(moment.segment, moment.tile)
        if moment.segment is Segment.PRE:
            pre = max(pre, live)
        elif moment.segment is Segment.CORE:
            core = max(core, live)
        elif moment.tile == tiles - 1 > 0:
            last = max(last, live)
        else:
            post = max(post, live)
    return SegmentBytes(
        pre_bytes=pre, core_bytes=core, post_bytes=max(post, 0), last_bytes=last if last else None
    )


def _moments(block: Block, tiles: int) -> Iterator[_Moment]:
    """Of a tile that stands for others twice, as the first and as the last of these."""
    during, before = live_bytes(block)
    repeats = {block.operations[r.start].segment: r for r in block.repeats}
    shift = at = 0
    for repeat in (*block.repeats, None):
        stop = len(during) if repeat is None else repeat.stop
        for index in range(at, stop):
            segment = block.operations[index].segment
            tile = _tile_of(index, repeats.get(segment), tiles)
            yield _Moment(segment, tile, during[index] + shift)
        if repeat is None:
            return
        shift += repeat.times * (before[repeat.stop] - before[repeat.start])
        for index in range(repeat.start, repeat.stop if repeat.times else repeat.start):
            operation = block.operations[index]
            yield _Moment(operation.segment, 1 + repeat.times, during[index] + shift)
        at = stop


def _tile_of(index: int, repeat: Repeat | None, tiles: int) -> int:
    """The tile that an operation is of; what comes before or after all tiles is of the first or the
    last.
    """
    if repeat is None or index < repeat.start:
        return 0
    return 1 if index < repeat.stop else tiles - 1
