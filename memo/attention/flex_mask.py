"""Block masks of `flex_attention`, by arithmetic: torch's `create_block_mask` evaluates a mask for
every pair of a query and a key, which at 128K tokens are 17 GB.

Scope: one block of a range mask (`memo.attention.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from memo.attention.blocks import Block

_SIZE = 128
"""Queries and keys of a block of `flex_attention`'s; its own default."""


def block_mask_of(block: Block, device: torch.device) -> BlockMask:
    """The mask of `block`, which is not open. Where queries or keys end within one of
    `flex_attention`'s blocks, that is masked as well, as torch does it.
    """
    queries, keys, _ = block.shape
    seen, full = _blocks(block, device)
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~full),
        *_listed(full),
        BLOCK_SIZE=_SIZE,
        mask_mod=_mask_mod(block),
        seq_lengths=(queries, keys),
    )


def _blocks(block: Block, device: torch.device) -> tuple[Tensor, Tensor]:
    """[blocks of queries, blocks of keys]: those of which a query sees any key, and those of which
    all see all.
    """
    queries, keys, ahead = block.shape
    first_q = torch.arange(0, queries, _SIZE, device=device)[:, None] + ahead
    last_q = first_q + _SIZE - 1
    first_k = torch.arange(0, keys, _SIZE, device=device)[None, :]
    last_k = first_k + _SIZE - 1
    seen = torch.ones((), dtype=torch.bool, device=device)
    full = (last_q < queries + ahead) & (last_k < keys)
    if block.causal:
        seen = seen & (first_k <= last_q.clamp(max=queries - 1 + ahead))
        full = full & (last_k <= first_q)
    if block.window is not None:
        seen = seen & (last_k.clamp(max=keys - 1) > first_q - block.window)
        full = full & (first_k > last_q - block.window)
    return seen.expand(full.shape), full


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each row, and which: those first, in order. [1, 1, rows] and [1, 1, rows, all].

    A stable sort of falses behind trues keeps the order.
    """
    order = (~blocks).to(torch.uint8).argsort(dim=-1, stable=True)
    counts = blocks.sum(dim=-1, dtype=torch.int32)
    return counts[None, None], order.to(torch.int32)[None, None].contiguous()


def _mask_mod(block: Block) -> Callable[..., Tensor]:
    *_, ahead = block.shape

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = k >= 0
        if block.causal:
            seen = seen & (k <= q + ahead)
        if block.window is not None:
            seen = seen & (k > q + ahead - block.window)
        return seen

    return mask_mod
