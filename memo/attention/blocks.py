"""Cutting a range mask into blocks that attention kernels know: causal squares, rectangles and
bands.

Scope: arithmetic. A block's mask is nothing, `is_causal`, or one small band of [queries, keys] that
blocks of the same shape share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from memo.attention.masks import Range, RangeMask, Row

_MIN_BAND_QUERIES = 128
"""Fewer queries in a block than this leave matmul units idle."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries `[q)` of sequences `[rows)` that see keys in `[k)`.

    `causal`: query i sees keys up to i, both counted in the sequence; `window`: at most so many
    back, itself included.
    """

    rows: Range
    q: Range
    k: Range
    causal: bool
    window: int | None = None

    @property
    def is_square(self) -> bool:
        """Causal with equal ranges and no window: kernels have a fast path."""
        return self.causal and self.window is None and self.q == self.k

    @property
    def is_open(self) -> bool:
        """Every query sees every key."""
        before = not self.causal or self.k[1] <= self.q[0] + 1
        reaches = self.window is None or self.k[0] > self.q[1] - 1 - self.window
        return before and reaches

    @property
    def shape(self) -> tuple[int, int, int]:
        """Queries, keys, and how far queries start behind keys: blocks of one shape share a
        band.
        """
        return self.q[1] - self.q[0], self.k[1] - self.k[0], self.q[0] - self.k[0]

    def allowed(self, device: torch.device) -> Tensor:
        """[queries, keys], true where a query sees a key."""
        i = torch.arange(*self.q, device=device)[:, None]
        j = torch.arange(*self.k, device=device)[None, :]
        seen = torch.ones((), dtype=torch.bool, device=device)
        if self.causal:
            seen = seen & (j <= i)
        if self.window is not None:
            seen = seen & (j > i - self.window)
        return seen.expand(i.shape[0], j.shape[1])


def blocks_of(mask: RangeMask, batch_size: int) -> Iterator[Block]:
    """The blocks of a mask. Queries in none of them see nothing, and their output is zero."""
    for rows, row in _grouped(mask.rows, batch_size):
        for span in spans_of(row, mask):
            yield from _cut(rows, span, span, mask)
        yield from _right_padding(rows, row, mask)


def right_padding_of(mask: RangeMask, batch_size: int) -> Iterator[Block]:
    """Those blocks whose queries are padding on the right."""
    for rows, row in _grouped(mask.rows, batch_size):
        yield from _right_padding(rows, row, mask)


def everything(mask: RangeMask, batch_size: int) -> Block:
    """The block around all rows and tokens, for a kernel that reads the mask itself."""
    tokens = (0, mask.tokens)
    return Block((0, batch_size), tokens, tokens, mask.causal, mask.window)


def _grouped(rows: tuple[Row, ...], batch_size: int) -> Iterator[tuple[Range, Row]]:
    if len(rows) == 1:
        yield (0, batch_size), rows[0]
        return
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] != rows[start]:
            yield (start, index), rows[start]
            start = index


def spans_of(row: Row, mask: RangeMask) -> Iterator[Range]:
    """The row's tokens that see one another: documents, or chunks of them."""
    for start, stop in row.documents:
        step = mask.chunk or stop - start
        for first in range(start, stop, step):
            yield first, min(first + step, stop)


def _right_padding(rows: Range, row: Row, mask: RangeMask) -> Iterator[Block]:
    # Padding on the right sees the tokens before it, as it does under SDPA with a mask: its outputs
    # are meaningless, but a loss that counts them must be the unwrapped model's.
    if not row.documents:
        return
    start, stop = row.documents[-1]
    first = stop - 1 - (stop - 1 - start) % mask.chunk if mask.chunk else start
    end = min(mask.tokens, first + mask.chunk) if mask.chunk else mask.tokens
    if stop < end:
        yield from _cut(rows, (stop, end), (first, stop), mask)


def _cut(rows: Range, q: Range, k: Range, mask: RangeMask) -> Iterator[Block]:
    window = mask.window
    if window is None or (q == k and window >= q[1] - q[0]):
        yield Block(rows, q, k, mask.causal)
        return
    step = max(_MIN_BAND_QUERIES, window // 4)
    end = min(q[1], k[1] + window - 1)  # queries further on see nothing
    for start in range(q[0], end, step):
        stop = min(start + step, end)
        first = max(k[0], start - window + 1)
        last = min(k[1], stop) if mask.causal else k[1]
        if first < last:
            yield Block(rows, (start, stop), (first, last), mask.causal, window)
