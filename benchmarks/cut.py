"""Attention in pieces of its sequence: the memory of attention over the whole, in linear time.

Scope: `attention_cut`, for probes that ask how much memory a step takes. Causal attention of a
million tokens takes minutes a layer and holds what attention within pieces of it holds: flash
kernels keep q, k, v, o and one number for each query and head, and their work space in backward
goes by tokens too. So a probe lays the pieces along the batch, runs torch's flash kernel on them,
and is done in seconds. The values are those of other documents; nobody looks at them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

aten = torch.ops.aten


@contextmanager
def attention_cut(tokens: int | None) -> Iterator[None]:
    """Let `scaled_dot_product_attention` see `tokens` at most, where it is causal and divides;
    None: all. Meanwhile the flash-attn package is not found, which memo would choose beside it.
    """
    if tokens is None:
        yield
        return
    original = functional.scaled_dot_product_attention

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        plain = is_causal and attn_mask is None and not dropout_p
        if plain and _is_divisible(query, key, tokens):
            out: Tensor = _Cut.apply(query, key, value, tokens, scale)  # type: ignore[no-untyped-call]
            return out
        return original(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    functional.scaled_dot_product_attention = attend
    try:
        with patch.dict(sys.modules, {"flash_attn": None}):
            yield
    finally:
        functional.scaled_dot_product_attention = original


def _is_divisible(query: Tensor, key: Tensor, tokens: int) -> bool:
    length = query.shape[2]
    square = query.shape[0] == 1 and key.shape[2] == length
    half = query.dtype in (torch.bfloat16, torch.float16)
    # The CPU's flash kernel takes float32 too; CUDA's doesn't.
    fits = half or query.device.type == "cpu"
    return square and fits and length > tokens and length % tokens == 0


class _Cut(torch.autograd.Function):
    """Flash attention of pieces. It saves q, k, v and o whole, as attention of the whole does."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int, scale: float | None
    ) -> Tensor:
        pieces = [_pieces(tensor, tokens) for tensor in (query, key, value)]
        if query.is_cuda:
            out, *rest = aten._scaled_dot_product_flash_attention(*pieces, 0.0, True, scale=scale)
        else:
            out, *rest = aten._scaled_dot_product_flash_attention_for_cpu(
                *pieces, 0.0, True, scale=scale
            )
        whole = _whole(out)
        kept = {index: item for index, item in enumerate(rest) if _is_kept(item)}
        ctx.save_for_backward(query, key, value, whole, *kept.values())
        ctx.kept, ctx.rest = list(kept), [None if i in kept else t for i, t in enumerate(rest)]
        ctx.tokens, ctx.scale = tokens, scale
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, out, *kept = ctx.saved_tensors
        rest = list(ctx.rest)
        for index, item in zip(ctx.kept, kept, strict=True):
            rest[index] = item
        pieces = [_pieces(t, ctx.tokens) for t in (grads[0], query, key, value, out)]
        if query.is_cuda:
            # lse, both cumulative lengths, both greatest lengths, seed and offset.
            lse, cum_q, cum_k, max_q, max_k, seed, offset = rest[:7]
            found = aten._scaled_dot_product_flash_attention_backward(
                *pieces, lse, cum_q, cum_k, max_q, max_k, 0.0, True, seed, offset, scale=ctx.scale
            )
        else:
            found = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *pieces, rest[0], 0.0, True, scale=ctx.scale
            )
        return (*map(_whole, found), None, None)


def _is_kept(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() > 0


def _pieces(tensor: Tensor, tokens: int) -> Tensor:
    """[1, heads, pieces x tokens, dim] as [pieces, heads, tokens, dim], a view."""
    pieces: Tensor = tensor.unflatten(2, (-1, tokens))
    return pieces[0].movedim(1, 0)


def _whole(tensor: Tensor) -> Tensor:
    """The other way round; a view where tokens follow the batch in memory, as flash writes them."""
    return tensor.movedim(0, 1).flatten(1, 2).unsqueeze(0)
