"""torch's CUDA flash kernels for many segments, written out on the CPU in any dtype.

Scope: what `varlen_attn` calls (`aten::_flash_attention_forward` and its backward), in place of
which a test may put this. It is as strict as they are: segments lie one after the other, only
`max_q` queries and `max_k` keys of each are written, what is written by none is not zero but NaN,
and backward builds on the `out` and log-sum-exp that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

Segment = tuple[slice, slice]


@dataclass(slots=True)
class FlashCuda:
    """`forward` and `backward` as aten has them; `calls` are the windows that forward was given."""

    calls: list[tuple[int, int]] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in the place of aten's."""
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", self.forward)
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", self.backward)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        dropout: float,
        is_causal: bool,
        *_: Any,
        scale: float,
        window_size_left: int,
        window_size_right: int,
        **__: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        assert dropout == 0
        assert is_causal == ((window_size_left, window_size_right) == (-1, 0))
        window = (window_size_left, window_size_right)
        self.calls.append(window)
        out, lse = torch.full_like(q, torch.nan), q.new_full((q.shape[1], q.shape[0]), torch.nan)
        for queries, keys in _segments(q, k, cu_q, cu_k):
            scores = _scores(q[queries], k[keys], scale, window)
            written = slice(queries.start, min(queries.start + max_q, queries.stop))
            count = written.stop - written.start
            found = scores.logsumexp(-1)
            weights = torch.exp(scores - found.unsqueeze(-1)).nan_to_num(0)
            repeated = _repeated(v[keys], q.shape[1])
            out[written] = (weights @ repeated).transpose(0, 1)[:count]
            lse[:, written] = found.masked_fill(found == -torch.inf, torch.inf)[:, :count]
        nothing = torch.empty(0)
        return out, lse, nothing, nothing, nothing

    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        *_: Any,
        scale: float,
        window_size_left: int,
        window_size_right: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        window = (window_size_left, window_size_right)
        grads = [torch.full_like(t, torch.nan) for t in (q, k, v)]
        for queries, keys in _segments(q, k, cu_q, cu_k):
            parts = _segment_backward(
                [t[queries] for t in (grad_out, q, out)],
                [t[keys] for t in (k, v)],
                lse[:, queries],
                scale,
                window,
            )
            for grad, part, run, most in zip(
                grads, parts, (queries, keys, keys), (max_q, max_k, max_k), strict=True
            ):
                grad[run][:most] = part[:most]
        return grads[0], grads[1], grads[2]


def _segments(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> Iterator[Segment]:
    assert cu_q.dtype == cu_k.dtype == torch.int32
    ends_q, ends_k = cu_q.numpy().tolist(), cu_k.numpy().tolist()
    assert len(ends_q) == len(ends_k)
    assert (ends_q[0], ends_q[-1]) == (0, q.shape[0])
    assert (ends_k[0], ends_k[-1]) == (0, k.shape[0])
    for (q0, q1), (k0, k1) in zip(pairwise(ends_q), pairwise(ends_k), strict=True):
        yield slice(q0, q1), slice(k0, k1)


def _scores(q: Tensor, k: Tensor, scale: float, window: tuple[int, int]) -> Tensor:
    """[heads, queries, keys]; the last query stands beside the last key."""
    left, right = window
    i = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
    j = torch.arange(k.shape[0])[None]
    hidden = torch.zeros(q.shape[0], k.shape[0], dtype=torch.bool)
    if left >= 0:
        hidden |= j < i - left
    if right >= 0:
        hidden |= j > i + right
    scores = q.transpose(0, 1) @ _repeated(k, q.shape[1]).mT * scale
    return scores.masked_fill(hidden, -torch.inf)


def _segment_backward(
    by_query: list[Tensor],
    by_key: list[Tensor],
    lse: Tensor,
    scale: float,
    window: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    grad_out, q, out = by_query
    k, v = by_key
    weights = torch.exp(_scores(q, k, scale, window) - lse.unsqueeze(-1))
    grad = grad_out.transpose(0, 1)
    row_sums = (grad_out * out).sum(-1).T.unsqueeze(-1)
    grad_scores = weights * (grad @ _repeated(v, q.shape[1]).mT - row_sums) * scale
    grad_q = grad_scores @ _repeated(k, q.shape[1])
    grad_k, grad_v = grad_scores.mT @ q.transpose(0, 1), weights.mT @ grad
    return grad_q.transpose(0, 1), _summed(grad_k, k), _summed(grad_v, v)


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    """[tokens, kv_heads, head_dim] as [heads, tokens, head_dim]."""
    return tensor.transpose(0, 1).repeat_interleave(heads // tensor.shape[1], dim=0)


def _summed(tensor: Tensor, like: Tensor) -> Tensor:
    """[heads, tokens, head_dim] as [tokens, kv_heads, head_dim], summed over heads that share."""
    grouped: Tensor = tensor.unflatten(0, (like.shape[1], -1))
    return grouped.sum(1).transpose(0, 1)
