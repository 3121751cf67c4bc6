"""What a block needs when some tiles are stored and others recomputed.

Scope: mixing two traces of one block, with no tile stored and with all of them. Both are the same
loops over tiles; of each loop the first tile, one that stands for many, and the last were traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from planner.trace.contracts import Block
from planner.trace.live import live_bytes
from planner.trace.need import Need


@dataclass(frozen=True, slots=True)
class _Piece:
    """Operations in a row that run `times` times over: bytes beyond those at its start, at most and
    left by each time.
    """

    peak_bytes: int
    gain_bytes: int
    times: int = 1


def mixed_need(none: Block, every: Block, *, stored_tiles: int, tiles: int) -> Need:
    """The need with `stored_tiles` of `tiles` stored, spread over the sequence: that share of each
    loop's tiles, and of what stands between loops the larger peak of both.
    """
    pieces, stored = _pieces(none), _pieces(every)
    if len(pieces) != len(stored) or len(pieces) == 1:
        # A layer of so few tiles that all were traced, or one that runs whole.
        whole = _Piece(max(p.peak_bytes for p in pieces), sum(p.gain_bytes for p in pieces))
        other = _Piece(max(p.peak_bytes for p in stored), sum(p.gain_bytes for p in stored))
        return Need(
            _share(whole.peak_bytes, other.peak_bytes, stored_tiles, tiles),
            _share(whole.gain_bytes, other.gain_bytes, stored_tiles, tiles),
        )
    need = Need(0, 0)
    for one, two in zip(pieces, stored, strict=True):
        need = need.then(_mixed(one, two, stored_tiles, tiles))
    return need


def _mixed(one: _Piece, two: _Piece, stored_tiles: int, tiles: int) -> Need:
    """Of two pieces that run as many times, some by the one and some by the other."""
    left = one.times * _share(one.gain_bytes, two.gain_bytes, stored_tiles, tiles)
    peak = max(one.peak_bytes, two.peak_bytes)
    # Tiles leave bytes behind or free them, all alike: the most is live in the last or the first.
    last = left - left // one.times
    return Need(peak + max(0, last), left)


def _share(a: int, b: int, part: int, whole: int) -> int:
    return a + (b - a) * part // whole


def _pieces(block: Block) -> list[_Piece]:
    during, before = live_bytes(block)
    ends = [0, *(end for r in block.repeats for end in (r.start, r.stop)), len(during)]
    times = [n for r in block.repeats for n in (1, r.times + 1)] + [1]
    return [
        _Piece(
            max((live - before[start] for live in during[start:stop]), default=0),
            before[stop] - before[start],
            count,
        )
        for (start, stop), count in zip(pairwise(ends), times, strict=True)
    ]
