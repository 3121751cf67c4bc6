"""The loss's side: a mean over the tokens of all ranks, and outputs per token gathered.

Scope: two differentiable functions on a sequence group. Every rank gets the same value, and its
backward makes the gradient of its own share; *their sum over the group* is the gradient of the
whole. An engine that takes the mean over ranks instead (DDP, FSDP2, ZeRO) needs a `gradient_scale`:
the number of ranks it takes the mean over, divided by the number of sequence groups among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memo.parallel.contracts import TokenShares
from memo.parallel.wire import Wire


def token_weighted_mean(
    loss_sum: Tensor,
    count: Tensor,
    wire: Wire,
    *,
    divisor: Tensor | float | None = None,
    gradient_scale: float = 1.0,
) -> Tensor:
    """The sum of all ranks' `loss_sum` over that of their `count`, the same on every rank.

    A rank without labels has the sum 0 and the count 0. Where no rank has a label the mean is NaN,
    as torch's is, and its gradient zero.

    Args:
        loss_sum: [], the sum of losses of this rank's tokens.
        count: [], how many there are.
        divisor: what to divide by instead of the count, as transformers' `num_items_in_batch`.
        gradient_scale: see the module's docstring.

    Returns:
        [], of `loss_sum`'s dtype.
    """
    result: Tensor = _Mean.apply(loss_sum, count, wire, divisor, gradient_scale)  # type: ignore[no-untyped-call]
    return result


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss_sum: Tensor,
        count: Tensor,
        wire: Wire,
        divisor: Tensor | float | None,
        gradient_scale: float,
    ) -> Tensor:
        # Float64 counts exactly, and a sum in the order of ranks is the same everywhere.
        own = torch.stack([loss_sum.double(), count.to(loss_sum.device).double()])
        total, counted = wire.gather(own).sum(0)
        by = counted if divisor is None else torch.as_tensor(divisor).to(total)
        ctx.factor = gradient_scale / by.where(by != 0, 1) * (by != 0)
        mean: Tensor = total / by
        return mean.to(loss_sum.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (grads[0] * ctx.factor).to(grads[0].dtype), None, None, None, None


def gather_tokens(
    own: Tensor, shares: TokenShares, wire: Wire, *, gradient_scale: float = 1.0
) -> Tensor:
    """[batch, own tokens, ...] of all ranks as [batch, tokens, ...], the same on every rank.

    Its backward takes a rank's own tokens of its own gradient: every rank computes the same from
    the whole, so all have the same gradient, and the sum of shares is that of one.
    """
    result: Tensor = _Gather.apply(own, shares, wire, gradient_scale)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, own: Tensor, shares: TokenShares, wire: Wire, gradient_scale: float
    ) -> Tensor:
        ctx.own, ctx.scale = shares.of(wire.group.rank), gradient_scale
        return _gathered(own, shares.tokens, wire)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        start, stop = ctx.own
        return grads[0][:, start:stop] * ctx.scale, None, None, None


def _gathered(own: Tensor, tokens: Sequence[int], wire: Wire) -> Tensor:
    per_token = own.shape[0] * torch.Size(own.shape[2:]).numel()
    flat = own.transpose(0, 1).flatten()
    size = wire.group.size
    received = wire.all_to_all(
        flat.repeat(size), [flat.numel()] * size, [per_token * count for count in tokens]
    )
    whole = received.wait().view(sum(tokens), own.shape[0], *own.shape[2:])
    return whole.transpose(0, 1).contiguous()
