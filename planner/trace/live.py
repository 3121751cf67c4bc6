"""Bytes that live at a time within one block.

Scope: sums over allocations, those of tiles that were not traced included.
"""

from __future__ import annotations

from itertools import accumulate

from planner.trace.contracts import Block
from planner.trace.need import Need


def live_bytes(block: Block) -> tuple[list[int], list[int]]:
    """By traced operation: bytes while it runs, and bytes just before it (one entry more: after
    the last), each beyond those when the block begins.
    """
    count = len(block.operations)
    born, freed = [0] * (count + 1), [0] * (count + 1)
    start = 0
    for allocation in block.allocations:
        if allocation.born < 0:
            start += allocation.size_bytes
        else:
            born[allocation.born] += allocation.size_bytes
        if allocation.freed is not None:
            freed[allocation.freed] += allocation.size_bytes
    changes = (b - f for b, f in zip(born, freed, strict=True))
    during = list(accumulate(changes))
    before = [total - new for total, new in zip(during, born, strict=True)]
    return during[:count], before


def expanded_live_bytes(block: Block) -> list[int]:
    """As `live_bytes` during every operation, those of tiles that were not traced included."""
    during, before = live_bytes(block)
    result: list[int] = []
    shift = at = 0
    for repeat in block.repeats:
        result += [live + shift for live in during[at : repeat.stop]]
        gain = before[repeat.stop] - before[repeat.start]
        for time in range(1, repeat.times + 1):
            result += [live + shift + time * gain for live in during[repeat.start : repeat.stop]]
        shift += repeat.times * gain
        at = repeat.stop
    return result + [live + shift for live in during[at:]]


def need_of(block: Block) -> Need:
    """What a block needs, its repeats included."""
    during, before = live_bytes(block)
    peak = shift = at = 0
    for repeat in block.repeats:
        peak = max([peak, *(live + shift for live in during[at : repeat.stop])])
        gain = repeat.times * (before[repeat.stop] - before[repeat.start])
        tile = max(during[repeat.start : repeat.stop], default=0)
        peak = max(peak, tile + shift + gain)
        shift, at = shift + gain, repeat.stop
    peak = max([peak, *(live + shift for live in during[at:])])
    return Need(peak, before[-1] + shift)
