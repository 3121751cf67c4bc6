"""Attention written out: an explicit [tokens, tokens] mask, softmax over all keys, in any dtype.

Scope: what the tests of masks, blocks and kernels are held against; it shares no code with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memo.attention.masks import RangeMask, Row


def dense_mask(mask: RangeMask, batch: int) -> Tensor:
    """[batch, tokens, tokens], true where a query sees a key, from the definition of the mask.

    Padding on the right counts as going on with the last document, though nobody sees it.
    """
    rows = mask.rows * batch if len(mask.rows) == 1 else mask.rows
    assert len(rows) == batch
    return torch.stack([_dense_row(row, mask) for row in rows])


def _dense_row(row: Row, mask: RangeMask) -> Tensor:
    first, stop = row.valid
    token = torch.arange(mask.tokens)
    document = torch.full((mask.tokens,), -1)
    start_of = torch.zeros(mask.tokens, dtype=torch.long)
    for index, start in enumerate(row.starts):
        document[start:], start_of[start:] = index, start
    i, j = token[:, None], token[None, :]
    seen = (document[:, None] == document[None, :]) & (i >= first) & (j >= first) & (j < stop)
    if mask.chunk is not None:
        chunk = (token - start_of) // mask.chunk
        seen = seen & (chunk[:, None] == chunk[None, :])
    if mask.causal:
        seen = seen & (j <= i)
    if mask.window is not None:
        seen = seen & (i - j < mask.window)
    return seen


def dense_attention(
    heads: Sequence[Tensor],
    seen: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """o as [batch, heads, queries, v_head_dim]; zero for queries that see nothing.

    `heads`: q, k, v as [batch, heads or kv_heads, tokens, head_dim]; `seen`: [queries, keys] or
    [batch, queries, keys]; `sinks`: [heads].
    """
    q, k, v = heads
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    scores = q @ k.mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = seen.expand(q.shape[0], *seen.shape[-2:]).unsqueeze(1)
    # A number far below all scores instead of -inf keeps rows that see nothing free of NaN.
    scores = scores.masked_fill(~seen, -1e30)
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return weights.masked_fill(~seen, 0) @ v
