"""Blocks cut in time where large buffers around them begin or end.

Scope: from a step to one with more and shorter blocks. A block takes its height for as long as it
lives, even where what is around it is larger than at the block's own highest moment; a part of it
takes only what that part needs. What lives across a cut is no longer in a block: such buffers are
few at the moments at which a layer hands something on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.layout.contracts import Buffer, Problem
from planner.layout.step import Step, Use, duration_of


@dataclass(frozen=True, slots=True)
class _Cut:
    """A block's parts by the moment at which each begins, and the buffers that are in none."""

    parts: Mapping[int, Problem]
    across: tuple[Buffer, ...]


def cut_blocks(step: Step, least_bytes: int) -> Step:
    """The step with each block cut at every moment at which, in any use of it, a buffer around it
    of `least_bytes` or more begins or ends. Its flat problem has the same buffers.
    """
    moments = _moments(step, least_bytes)
    cuts = {name: _cut(block, sorted(moments[name])) for name, block in step.blocks.items()}
    blocks = {
        _part_name(name, start): problem
        for name, cut in cuts.items()
        for start, problem in cut.parts.items()
    }
    uses = [part for use in step.uses for part in _parts(use, cuts[use.block])]
    across = [
        use.placed(buffer, step.blocks[use.block].alignment_of(buffer))
        for use in step.uses
        for buffer in cuts[use.block].across
    ]
    return Step(blocks, tuple(uses), (*step.buffers, *across), step.alignment_bytes)


def _moments(step: Step, least_bytes: int) -> dict[str, set[int]]:
    """By block: when, within a use of it, a large buffer begins or ends."""
    large = [buffer for buffer in step.buffers if buffer.size_bytes >= least_bytes]
    events = sorted({moment for b in large for moment in (b.lower, b.upper)})
    durations = {name: duration_of(problem) for name, problem in step.blocks.items()}
    found: dict[str, set[int]] = defaultdict(set)
    for use in step.uses:
        first = bisect_right(events, use.start)
        last = bisect_left(events, use.start + durations[use.block])
        found[use.block].update(moment - use.start for moment in events[first:last])
    return found


def _cut(block: Problem, moments: Sequence[int]) -> _Cut:
    starts = [0, *moments]
    inside: dict[int, list[Buffer]] = defaultdict(list)
    across: list[Buffer] = []
    for buffer in block.buffers:
        at = bisect_right(starts, buffer.lower)
        start = starts[at - 1]
        if at < len(starts) and buffer.upper > starts[at]:
            across.append(buffer)
        else:
            moved = replace(buffer, lower=buffer.lower - start, upper=buffer.upper - start)
            inside[start].append(moved)
    parts = {
        start: replace(block, buffers=tuple(buffers)) for start, buffers in sorted(inside.items())
    }
    return _Cut(parts, tuple(across))


def _parts(use: Use, cut: _Cut) -> Iterator[Use]:
    owner = use.id if use.owner is None else use.owner
    for start in cut.parts:
        yield Use(_part_name(use.id, start), _part_name(use.block, start), use.start + start, owner)


def _part_name(name: str, start: int) -> str:
    return f"{name}#{start}"
