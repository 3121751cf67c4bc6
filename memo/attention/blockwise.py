"""A plain-torch attention kernel for what fused ones cannot do: soft-capping, sinks, dropout on the
CPU.

Scope: exact attention by blocks of queries, in memory linear in the sequence, on any device. Its
backward is that of FlashAttention (Dao et al. 2022, appendix B.2): scores are recomputed from q and
k, normalised by the stored log-sum-exp, and the softmax's row sums come from o.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from memo.attention.blocks import Block
from memo.attention.contracts import AttentionOptions, BlockInputs, HeadGradients
from offload import CoreState, TensorStore, Tier, Turn
from offload.store import Ticket

_SCORE_BYTES = 64 << 20
"""Scores of one block of queries in float32, at most; about what stays in a last-level cache or
is soon reused.
"""


@dataclass(slots=True)
class BlockwiseState:
    """The log-sum-exp ([batch, heads, queries], float32 or wider) and the seed of dropout."""

    lse: Ticket
    seed: int

    @property
    def nbytes(self) -> int:
        return self.lse.size_bytes


@dataclass(slots=True)
class _Scores:
    """Scores of some queries, [batch, kv_heads, groups, queries, keys]: `raw` before the cap,
    `capped` after it and masked.
    """

    tanh: Tensor | None
    capped: Tensor


@dataclass(slots=True)
class BlockwiseKernel:
    """Attention of one block, a few hundred queries at a time."""

    name: ClassVar[str] = "blockwise"
    store: TensorStore

    def forward(
        self, inputs: BlockInputs, tier: Tier | None
    ) -> tuple[Tensor, BlockwiseState | None]:
        seed = _fresh_seed() if inputs.options.dropout else 0
        outs, sums = [], []
        for part in _parts(inputs):
            scores = _scores(part).capped
            lse = _log_sum_exp(scores, part.sinks)
            weights = _dropped(_weights(scores, lse), part, seed)[0]
            grouped = weights.to(part.v.dtype) @ part.v.unsqueeze(2)
            outs.append(grouped.flatten(1, 2))
            sums.append(lse.flatten(1, 2))
        out = torch.cat(outs, dim=2)
        if tier is None:
            return out, None
        return out, BlockwiseState(self.store.put([torch.cat(sums, dim=2)], tier, Turn.CORE), seed)

    def backward(
        self, grad_o: Tensor, inputs: BlockInputs, o: Tensor, state: CoreState
    ) -> HeadGradients:
        assert isinstance(state, BlockwiseState)
        (lse_all,) = self.store.get(state.lse)
        wide = lse_all.dtype
        grads = _Gradients(inputs, wide)
        for part in _parts(inputs):
            rows = slice(part.block.q[0] - inputs.block.q[0], part.block.q[1] - inputs.block.q[0])
            self._backward_part(
                part,
                grad_o[:, :, rows],
                lse_all[:, :, rows],
                state.seed,
                grads,
                rows,
            )
        return grads.value()

    @staticmethod
    def _backward_part(
        part: BlockInputs,
        grad_o: Tensor,
        lse: Tensor,
        seed: int,
        grads: _Gradients,
        rows: slice,
    ) -> None:
        grad_o, lse = (_group(t, part) for t in (grad_o, lse))
        scores = _scores(part)
        weights = _weights(scores.capped, lse)
        dropped, kept = _dropped(weights, part, seed)
        keys = slice(part.block.k[0] - grads.first_key, part.block.k[1] - grads.first_key)
        dtype = part.q.dtype
        grads.v[:, :, keys] += (dropped.to(dtype).mT @ grad_o).sum(2)
        grad_weights = (grad_o @ part.v.unsqueeze(2).mT).to(lse.dtype)
        if kept is not None:
            grad_weights = grad_weights * kept
        row_sums = (weights * grad_weights).sum(-1)
        grad_scores = weights * (grad_weights - row_sums.unsqueeze(-1))
        if part.sinks is not None and grads.sinks is not None:
            sink = torch.exp(part.sinks.view(1, *lse.shape[1:3], 1).to(lse.dtype) - lse)
            grads.sinks -= (sink * row_sums).sum(dim=(0, 3)).flatten()
        if scores.tanh is not None:
            grad_scores = grad_scores * (1 - scores.tanh.square())
        grad_scores = (grad_scores * part.options.scale).to(dtype)
        grads.q[:, :, rows] = (grad_scores @ part.k.unsqueeze(2)).flatten(1, 2)
        grads.k[:, :, keys] += (grad_scores.mT @ _group(part.q, part)).sum(2)


class _Gradients:
    """Sums over blocks of queries; k's and v's are wide."""

    def __init__(self, inputs: BlockInputs, wide: torch.dtype) -> None:
        self.q = torch.empty_like(inputs.q)
        self.k = torch.zeros_like(inputs.k, dtype=wide)
        self.v = torch.zeros_like(inputs.v, dtype=wide)
        self.sinks = None if inputs.sinks is None else torch.zeros_like(inputs.sinks, dtype=wide)
        self.first_key = inputs.block.k[0]
        self._sink_dtype = None if inputs.sinks is None else inputs.sinks.dtype

    def value(self) -> HeadGradients:
        sinks = self.sinks if self.sinks is None else self.sinks.to(self._sink_dtype)
        dtype = self.q.dtype
        return HeadGradients(self.q, self.k.to(dtype), self.v.to(dtype), sinks)


def _parts(inputs: BlockInputs) -> Iterator[BlockInputs]:
    """The block cut along queries, each part with the keys that it can see."""
    block = inputs.block
    row_bytes = 4 * inputs.q.shape[0] * inputs.q.shape[1] * max(1, inputs.k.shape[2])
    step = max(16, _SCORE_BYTES // row_bytes)
    for start in range(block.q[0], block.q[1], step):
        stop = min(start + step, block.q[1])
        last = max(min(block.k[1], stop), block.k[0] + 1) if block.causal else block.k[1]
        q = inputs.q[:, :, start - block.q[0] : stop - block.q[0]]
        k, v = (t[:, :, : last - block.k[0]] for t in (inputs.k, inputs.v))
        part = Block(block.rows, (start, stop), (block.k[0], last), block.causal, block.window)
        yield replace(inputs, q=q, k=k, v=v, block=part)


def _group(tensor: Tensor, part: BlockInputs) -> Tensor:
    """[batch, heads, ...] as [batch, kv_heads, groups, ...]."""
    return tensor.view(tensor.shape[0], part.k.shape[1], part.groups, *tensor.shape[2:])


def _scores(part: BlockInputs) -> _Scores:
    options: AttentionOptions = part.options
    wide = torch.promote_types(part.q.dtype, torch.float32)
    scores = (_group(part.q, part) @ part.k.unsqueeze(2).mT).to(wide) * options.scale
    tanh = None
    if options.softcap is not None:
        tanh = torch.tanh(scores / options.softcap)
        scores = tanh * options.softcap
    if not part.block.is_open:
        scores = scores.masked_fill(~part.block.allowed(scores.device), -torch.inf)
    return _Scores(tanh, scores)


def _log_sum_exp(scores: Tensor, sinks: Tensor | None) -> Tensor:
    lse = scores.logsumexp(-1)
    if sinks is None:
        return lse
    shape = (1, scores.shape[1], scores.shape[2], 1)
    return torch.logaddexp(lse, sinks.view(shape).to(lse.dtype))


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    return torch.exp(scores - lse.unsqueeze(-1))


def _fresh_seed() -> int:
    return int(torch.randint(2**62, ()))


def _dropped(weights: Tensor, part: BlockInputs, seed: int) -> tuple[Tensor, Tensor | None]:
    p = part.options.dropout
    if not p:
        return weights, None
    # Each part draws from a seed of its own, so that backward finds the same numbers in any order.
    generator = torch.Generator(weights.device).manual_seed(seed + part.block.q[0])
    kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= p
    scaled = kept.to(weights.dtype) / (1 - p)
    return weights * scaled, scaled
