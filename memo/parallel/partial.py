"""Attention of some queries over some of their keys, and its gradients given the log-sum-exp over
all of them.

Scope: one block, by torch's flash kernels where they can, else written out. The backward is
FlashAttention's (Dao et al. 2022, appendix B.2): weights are exp(score - lse), so with the final o
and log-sum-exp the gradients of parts add up to those of the whole (Liu et al., Ring Attention,
arXiv 2310.01889).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from memo.attention.blocks import Block
from memo.attention.sdpa import Bands

_FLASH_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward


@dataclass(frozen=True, slots=True)
class PartInputs:
    """q [batch, heads, queries, head_dim], k and v [batch, kv_heads, keys, head_dim] of a block in
    which every query sees a key; `softcap` and `scale` as in `AttentionOptions`. `bands` are shared
    with other parts.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    block: Block
    scale: float
    softcap: float | None
    bands: Bands

    @property
    def is_cuda(self) -> bool:
        """Whether it is for CUDA's kernels."""
        return self.q.is_cuda

    @property
    def is_fused(self) -> bool:
        """Whether a flash kernel can: no matrix of scores is made then."""
        if self.softcap is not None or self.v.shape[-1] > self.q.shape[-1]:
            return False
        if not self.is_cuda:
            return self.q.device.type == "cpu"
        half = self.q.dtype in (torch.float16, torch.bfloat16)
        plain = self.block.is_open or self.block.is_square
        return half and plain and self.q.shape[-1] % 8 == 0 and self.q.shape[-1] <= 256

    @property
    def is_causal(self) -> bool:
        return self.block.is_square and not self.block.is_open

    def bias(self) -> Tensor | None:
        """0 where a query sees a key and -inf elsewhere, [queries, keys]; None for a block that is
        open or a causal square.
        """
        plain = self.block.is_open or self.block.is_square
        return None if plain else self.bands.of(self.block, self.q)


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The end of attention over *all* keys, for the queries of a part: o and its gradient [batch,
    heads, queries, v_head_dim], the log-sum-exp [batch, heads, queries] in float32 or wider.
    """

    o: Tensor
    grad_o: Tensor
    lse: Tensor


def attend_part(inputs: PartInputs) -> tuple[Tensor, Tensor]:
    """o ([batch, heads, queries, v_head_dim]) and log-sum-exp ([batch, heads, queries], float32 or
    wider) over the part's keys alone.
    """
    if not inputs.is_fused:
        return _written_out(inputs)
    v_dim, v = inputs.v.shape[-1], _padded(inputs.v, inputs)
    if inputs.is_cuda:
        o, lse, *_ = _FLASH(inputs.q, inputs.k, v, is_causal=inputs.is_causal, scale=inputs.scale)
    else:
        o, lse = _FLASH_CPU(
            inputs.q,
            inputs.k,
            v,
            is_causal=inputs.is_causal,
            attn_mask=inputs.bias(),
            scale=inputs.scale,
        )
    return _cut(o, v_dim), lse


def part_gradients(inputs: PartInputs, end: PartEnd) -> tuple[Tensor, Tensor, Tensor]:
    """What a part adds to the gradients of its q, k and v."""
    if not inputs.is_fused:
        return _gradients_written_out(inputs, end)
    v_dim, v = inputs.v.shape[-1], _padded(inputs.v, inputs)
    o, grad_o = (_padded(tensor, inputs) for tensor in (end.o, end.grad_o))
    kernel = _flash_backward if inputs.is_cuda else _flash_cpu_backward
    grad_q, grad_k, grad_v = kernel(inputs, v, PartEnd(o, grad_o, end.lse))
    return grad_q, grad_k, _cut(grad_v, v_dim)


def _cut(tensor: Tensor, size: int) -> Tensor:
    return tensor[..., :size]


def _flash_cpu_backward(inputs: PartInputs, v: Tensor, end: PartEnd) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = _FLASH_CPU_BACKWARD(
        end.grad_o,
        inputs.q,
        inputs.k,
        v,
        end.o,
        end.lse,
        0.0,
        inputs.is_causal,
        attn_mask=inputs.bias(),
        scale=inputs.scale,
    )
    return grads


def _flash_backward(inputs: PartInputs, v: Tensor, end: PartEnd) -> tuple[Tensor, ...]:
    unused = torch.empty(0, dtype=torch.uint64, device=v.device)  # a random state, for dropout
    grads: tuple[Tensor, ...] = _FLASH_BACKWARD(
        end.grad_o,
        inputs.q,
        inputs.k,
        v,
        end.o,
        end.lse.contiguous(),
        None,
        None,
        inputs.q.shape[2],
        inputs.k.shape[2],
        0.0,
        inputs.is_causal,
        unused,
        unused,
        scale=inputs.scale,
    )
    return grads


def _padded(tensor: Tensor, inputs: PartInputs) -> Tensor:
    # Flash kernels want one head size; zeros in v give zeros in o, which change nothing.
    missing = inputs.q.shape[-1] - tensor.shape[-1]
    return functional.pad(tensor, (0, missing)) if missing else tensor


def _grouped(tensor: Tensor, inputs: PartInputs) -> Tensor:
    """[batch, heads, ...] as [batch, kv_heads, groups, ...]."""
    kv_heads = inputs.k.shape[1]
    return tensor.reshape(tensor.shape[0], kv_heads, -1, *tensor.shape[2:])


def _scores(inputs: PartInputs) -> tuple[Tensor, Tensor | None]:
    """[batch, kv_heads, groups, queries, keys] in float32 or wider, and the tanh of a cap."""
    wide = torch.promote_types(inputs.q.dtype, torch.float32)
    scores = (_grouped(inputs.q, inputs) @ inputs.k.unsqueeze(2).mT).to(wide) * inputs.scale
    tanh = None
    if inputs.softcap is not None:
        tanh = torch.tanh(scores / inputs.softcap)
        scores = tanh * inputs.softcap
    if not inputs.block.is_open:
        scores = scores.masked_fill(~inputs.block.allowed(scores.device), -torch.inf)
    return scores, tanh


def _written_out(inputs: PartInputs) -> tuple[Tensor, Tensor]:
    scores, _ = _scores(inputs)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.unsqueeze(-1)).to(inputs.v.dtype)
    return (weights @ inputs.v.unsqueeze(2)).flatten(1, 2), lse.flatten(1, 2)


def _gradients_written_out(inputs: PartInputs, end: PartEnd) -> tuple[Tensor, Tensor, Tensor]:
    scores, tanh = _scores(inputs)
    dtype, wide = inputs.q.dtype, scores.dtype
    grad_o, o = (_grouped(tensor, inputs) for tensor in (end.grad_o, end.o))
    weights = torch.exp(scores - _grouped(end.lse, inputs).unsqueeze(-1))
    grad_weights = (grad_o @ inputs.v.unsqueeze(2).mT).to(wide)
    row_sums = (grad_o.to(wide) * o.to(wide)).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - row_sums)
    if tanh is not None:
        grad_scores = grad_scores * (1 - tanh.square())
    grad_scores = (grad_scores * inputs.scale).to(dtype)
    grad_q = (grad_scores @ inputs.k.unsqueeze(2)).flatten(1, 2)
    grad_k = (grad_scores.mT @ _grouped(inputs.q, inputs)).sum(2)
    grad_v = (weights.to(dtype).mT @ grad_o).sum(2)
    return grad_q, grad_k, grad_v
