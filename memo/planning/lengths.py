"""The longest sequence that fits.

Scope: costs at lengths that were not traced, a search over them, and its answer confirmed by a
trace. With tiles of one size, bytes grow evenly with the tokens, and so do times, but for the
core's, which have a part that grows with their square: two lengths tell all others. Peaks are
maxima of such bytes, so where another part of the step becomes the largest they are somewhat off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.swap.contracts import LayerCost, PartCost, SegmentBytes, SegmentTimes, StepCost


@dataclass(frozen=True, slots=True)
class Lengths:
    """One step's costs at two local lengths, with tiles of one size."""

    first: StepCost
    second: StepCost
    first_tokens: int
    second_tokens: int

    def at(self, tokens: int) -> StepCost:
        """The step's cost at another local length."""
        line = _Line(self.first_tokens, self.second_tokens, tokens)
        pairs = zip(self.first.layers, self.second.layers, strict=True)
        known: dict[tuple[int, int], LayerCost] = {}
        layers = []
        for one, two in pairs:
            key = id(one), id(two)
            if key not in known:
                known[key] = self._layer(one, two, line)
            layers.append(known[key])
        return replace(
            self.first,
            layers=tuple(layers),
            embedding=_part(self.first.embedding, self.second.embedding, line),
            head=_part(self.first.head, self.second.head, line),
            resident_bytes={
                tier: line.size(size, self.second.resident_bytes.get(tier, 0))
                for tier, size in self.first.resident_bytes.items()
            },
            model_flops=line.curve(self.first.model_flops, self.second.model_flops),
        )

    def _layer(self, one: LayerCost, two: LayerCost, line: _Line) -> LayerCost:
        tile_tokens = self.first.tile_tokens
        is_whole = one.is_whole
        tiles = 1 if is_whole else -(-line.tokens // tile_tokens)
        last_tokens = line.tokens - (tiles - 1) * tile_tokens
        return replace(
            one,
            tiles=tiles,
            last_tile=last_tokens / tile_tokens if tiles > 1 else 1.0,
            forward=_times(one.forward, two.forward, line),
            backward=_times(one.backward, two.backward, line),
            recompute=_times(one.recompute, two.recompute, line),
            x_bytes=line.size(one.x_bytes, two.x_bytes),
            o_bytes=line.size(one.o_bytes, two.o_bytes),
            o_core_bytes=line.size(one.o_core_bytes, two.o_core_bytes),
            tile_bytes=line.size(one.tile_bytes, two.tile_bytes)
            if is_whole
            else max(one.tile_bytes, two.tile_bytes),
            tile_pre_bytes=max(one.tile_pre_bytes, two.tile_pre_bytes),
            forward_live=_live(one.forward_live, two.forward_live, line),
            backward_live=_live(one.backward_live, two.backward_live, line),
        )


@dataclass(frozen=True, slots=True)
class _Line:
    first: int
    second: int
    tokens: int

    def value(self, one: float, two: float) -> float:
        """On the straight line through both."""
        share = (self.tokens - self.first) / (self.second - self.first)
        return max(0.0, one + (two - one) * share)

    def size(self, one: int, two: int) -> int:
        return round(self.value(one, two))

    def curve(self, one: float, two: float) -> float:
        """On the parabola through both and 0."""
        return self.tokens * self.value(one / self.first, two / self.second)


def _times(one: SegmentTimes, two: SegmentTimes, line: _Line) -> SegmentTimes:
    return SegmentTimes(
        pre_s=line.value(one.pre_s, two.pre_s),
        core_s=line.curve(one.core_s, two.core_s),
        post_s=line.value(one.post_s, two.post_s),
    )


def _live(one: SegmentBytes, two: SegmentBytes, line: _Line) -> SegmentBytes:
    """The last tile's length jumps with the tokens, so it is taken to need what others do."""
    stored = None
    if one.stored is not None and two.stored is not None:
        stored = _live(one.stored, two.stored, line)
    return SegmentBytes(
        pre_bytes=line.size(one.pre_bytes, two.pre_bytes),
        core_bytes=line.size(one.core_bytes, two.core_bytes),
        post_bytes=line.size(one.post_bytes, two.post_bytes),
        stored=stored,
    )


def _part(one: PartCost, two: PartCost, line: _Line) -> PartCost:
    return replace(
        one,
        forward_s=line.value(one.forward_s, two.forward_s),
        backward_s=line.value(one.backward_s, two.backward_s),
        forward_live_bytes=line.size(one.forward_live_bytes, two.forward_live_bytes),
        backward_live_bytes=line.size(one.backward_live_bytes, two.backward_live_bytes),
    )


def confirmed(
    tokens: int, fits: Callable[[int], bool], *, unit_tokens: int, tries: int = 5
) -> int | None:
    """The first of `tokens` and what is shorter by one unit, two, four, ..., that `fits`; None when
    none of `tries` does.
    """
    step = 0
    for _ in range(tries):
        if tokens - step <= 0:
            return None
        if fits(tokens - step):
            return tokens - step
        step = max(unit_tokens, 2 * step)
    return None
