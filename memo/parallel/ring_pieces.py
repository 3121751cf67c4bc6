"""What a row of a ring computes with the keys of another: blocks of the mask, cut to the tokens
that each has.

Scope: arithmetic. A piece's queries and keys lie in one span each, every query sees at least one
key, and a mask is needed on bands of windows only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from memo.attention.blocks import Block, blocks_of
from memo.attention.masks import Range, RangeMask

Spans = tuple[Range, ...]
"""Tokens of a row: runs of the sequence, in order; they lie one behind another in its tensors."""


def tokens_of(spans: Spans) -> int:
    """How many tokens a row has."""
    return sum(stop - start for start, stop in spans)


@dataclass(frozen=True, slots=True)
class RingPiece:
    """A block in tokens of the whole sequence; `q_at`, `k_at`: where its queries and keys begin in
    the tensors of the rows that hold them.
    """

    block: Block
    q_at: int
    k_at: int

    @property
    def q(self) -> slice:
        return slice(self.q_at, self.q_at + self.block.q[1] - self.block.q[0])

    @property
    def k(self) -> slice:
        return slice(self.k_at, self.k_at + self.block.k[1] - self.block.k[0])

    def cut(self, step: int) -> Iterator[RingPiece]:
        """The piece, `step` queries at a time."""
        for start in range(self.block.q[0], self.block.q[1], step):
            q = start, min(start + step, self.block.q[1])
            cut = clipped(self.block, q, self.block.k)
            if cut is not None:
                q_at, k_at = self.q_at + cut.q[0], self.k_at + cut.k[0]
                yield RingPiece(cut, q_at - self.block.q[0], k_at - self.block.k[0])


def ring_pieces(
    mask: RangeMask, batch_size: int, queries: Spans, keys: Spans
) -> Iterator[RingPiece]:
    """The pieces between a row's queries and another's keys."""
    for block in blocks_of(mask, batch_size):
        for q_span, q_at in _placed(queries):
            for k_span, k_at in _placed(keys):
                cut = clipped(block, q_span, k_span)
                if cut is not None:
                    yield RingPiece(cut, q_at + cut.q[0] - q_span[0], k_at + cut.k[0] - k_span[0])


def _placed(spans: Spans) -> Sequence[tuple[Range, int]]:
    ends = accumulate((stop - start for start, stop in spans), initial=0)
    return list(zip(spans, ends, strict=False))


def clipped(block: Block, q: Range, k: Range) -> Block | None:
    """The block's queries in `q` and keys in `k`, without queries that see none of them and keys
    that none of them sees; None if nothing is left.
    """
    (q0, q1), (k0, k1) = _both(block.q, q), _both(block.k, k)
    if block.causal:
        k1 = min(k1, q1)
        q0 = max(q0, k0)
    if block.window is not None:
        k0 = max(k0, q0 - block.window + 1)
        q1 = min(q1, k1 - 1 + block.window)
        k1 = min(k1, q1) if block.causal else k1
    if q0 >= q1 or k0 >= k1:
        return None
    return replace(block, q=(q0, q1), k=(k0, k1))


def _both(a: Range, b: Range) -> Range:
    return max(a[0], b[0]), min(a[1], b[1])
