"""Attention as a CUDA device's kernels do it, on fake tensors of the CPU.

Scope: what a fused kernel allocates: o, the log-sum-exp, the gradients, and the flash kernel's
memory of its own in backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memo.attention.blocks import everything
from memo.attention.contracts import BlockInputs, Kernel
from memo.attention.core import AttentionCore
from memo.attention.pieces import Piece, options_of
from memo.attention.recorded import RecordedKernel
from memo.attention.shapes import all_heads
from memo.attention.varlen import VarlenKernel, is_flat
from offload import CoreCall, TensorStore

_aten = torch.ops.aten


class FusedCore(AttentionCore):
    """Takes every call to one fused kernel, whatever mask, soft-capping or sinks it has: on CUDA
    there is one for each (flash, cuDNN, flex), and all hold the same.
    """

    def __init__(self, store: TensorStore) -> None:
        super().__init__(store, varlen=VarlenKernel(store, attention=_attention))
        self._of_rows = _RowsKernel(store)

    def kernel_for(self, call: CoreCall) -> Kernel:
        return self._varlen if all(map(is_flat, call.heads)) else self._of_rows

    def _pieces(self, call: CoreCall) -> Iterator[tuple[Kernel, Piece]]:
        block = everything(options_of(call).mask, call.heads[0].shape[0])
        yield self.kernel_for(call), Piece(block, all_heads(call))


class _RowsKernel(RecordedKernel):
    """For rows that do not follow one another in memory, as those of a batch that ranks exchanged:
    they keep their dim. A chunk is taken for a window.
    """

    name = "rows"

    def attend(self, inputs: BlockInputs) -> Tensor:
        mask, tokens = inputs.options.mask, inputs.q.shape[2]
        sight = min(mask.window or tokens, mask.chunk or tokens)
        window = sight - 1 if sight < tokens else -1, 0 if mask.causal else -1
        by_token = (t.transpose(1, 2) for t in (inputs.q, inputs.k, inputs.v))
        o: Tensor = _Flash.apply(*by_token, None, tokens, inputs.options.scale, window)  # type: ignore[no-untyped-call]
        return o.transpose(1, 2)

    def as_saved(self, o: Tensor) -> Tensor:
        """[batch, heads, tokens, head_dim] as [batch, tokens, heads, head_dim]."""
        return o.transpose(1, 2)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn`; q, k, v as [tokens, heads, head_dim]."""
    result: Tensor = _Flash.apply(q, k, v, cu_seq_q, longest_q, scale, window_size)  # type: ignore[no-untyped-call]
    return result


class _Flash(torch.autograd.Function):
    """Of [tokens, heads, head_dim], or of [batch, tokens, heads, head_dim] without `cu_seq`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seq: Tensor | None,
        longest: int,
        scale: float,
        window_size: tuple[int, int],
    ) -> Tensor:
        o: Tensor
        o, lse, state, unused, _ = _aten._flash_attention_forward(
            *(q, k, v, cu_seq, cu_seq, longest, longest),
            *(0.0, window_size[1] == 0, False),
            scale=scale,
            window_size_left=window_size[0],
            window_size_right=window_size[1],
        )
        ctx.save_for_backward(q, k, v, o, lse, cu_seq, state, unused)
        ctx.longest, ctx.scale, ctx.window_size = longest, scale, window_size
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, o, lse, cu_seq, state, unused = ctx.saved_tensors
        (heads, size), kv_heads = q.shape[-2:], k.shape[-2]
        queries, keys = q.numel() // (heads * size), k.numel() // (kv_heads * size)
        workspace = flash_workspace(q, queries, heads, size, keys, is_shared=kv_heads != heads)
        dq, dk, dv = _aten._flash_attention_backward(
            *(grads[0], q, k, v, o, lse, cu_seq, cu_seq, ctx.longest, ctx.longest),
            *(0.0, ctx.window_size[1] == 0, state, unused),
            scale=ctx.scale,
            window_size_left=ctx.window_size[0],
            window_size_right=ctx.window_size[1],
        )
        del workspace
        return dq, dk, dv, None, None, None, None


def flash_workspace(
    like: Tensor, queries: int, heads: int, head_dim: int, keys: int, *, is_shared: bool
) -> list[Tensor]:
    """What flash attention's backward allocates beside its results: float32 sums for dq, the row
    sums of o * do, and dk and dv for every query head where heads share them (`mha_bwd` and
    `mha_varlen_bwd` in ATen/native/transformers/cuda/flash_attn/flash_api.cpp). `queries` and
    `keys` are tokens of all rows.
    """
    wide = -(-head_dim // 32) * 32 if head_dim <= 128 else -(-head_dim // 64) * 64
    sums = [
        like.new_empty((queries + 128, heads, wide), dtype=torch.float32),
        like.new_empty((heads, queries + 128), dtype=torch.float32),
    ]
    return sums + [like.new_empty((keys, heads, head_dim)) for _ in range(2 * is_shared)]
