"""Head and cross-entropy, tile by tile, in both directions.

Scope: `tiled_cross_entropy`. Gradients are made in forward while a tile's logits are there, and
scaled by the incoming gradient in backward: for the hidden states *and* the head's parameters.
Logits of one tile are all that ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from memo.loss.lazy import LogitsRecipe
from memo.modules import PlainForward
from offload.contracts import SECOND_BACKWARD, MemoError
from offload.gradients import ParameterGradients

_TILE_BYTES = {"cpu": 64 << 20}
_ACCELERATOR_TILE_BYTES = 512 << 20
"""Float32 logits of one tile, about, by device type: an accelerator needs more rows to be busy."""

_MIN_TOKENS = 128


@dataclass(frozen=True, slots=True)
class LossSpec:
    """What the loss is of: `divisor` None means the number of labels that count (a mean)."""

    head: nn.Module
    recipe: LogitsRecipe
    ignore_index: int
    divisor: Tensor | float | None
    vocabulary: int
    logits_dtype: torch.dtype

    def tile_tokens(self, device: torch.device) -> int:
        budget = _TILE_BYTES.get(device.type, _ACCELERATOR_TILE_BYTES)
        return max(_MIN_TOKENS, budget // (4 * self.vocabulary))


def tiled_cross_entropy(spec: LossSpec, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of `labels` ([batch, tokens], int) under the logits of `hidden` ([batch,
    tokens, hidden]).

    Returns a float32 scalar, as `transformers`' `ForCausalLMLoss` does on the same logits.
    """
    params = dict(spec.head.named_parameters())
    flat_hidden, flat_labels = hidden.flatten(0, -2), labels.flatten().to(hidden.device)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, *params.values())):
        loss: Tensor = _TiledLoss.apply(  # type: ignore[no-untyped-call]
            spec, tuple(params), flat_hidden, flat_labels, *params.values()
        )
        return loss
    total, head = hidden.new_zeros((), dtype=torch.float32), PlainForward(spec.head)
    with torch.no_grad():
        for rows in _tiles(spec, flat_hidden):
            logits = spec.recipe.apply(flat_hidden[rows], head).float()
            total += _cross_entropy_sum(logits, flat_labels[rows], spec.ignore_index)
    return total / _divisor(spec, flat_labels)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        spec: LossSpec,
        names: tuple[str, ...],
        hidden: Tensor,
        labels: Tensor,
        *params: Tensor,
    ) -> Tensor:
        divisor = _divisor(spec, labels)
        # In half precision gradients divided by a million labels would vanish below what float16
        # can hold.
        early = torch.float16 not in (hidden.dtype, spec.logits_dtype)
        hidden_needs, params_need = ctx.needs_input_grad[2], any(ctx.needs_input_grad[4:])
        gradients = ParameterGradients(dict(zip(names, params, strict=True)))
        head = partial(PlainForward(spec.head).with_params, gradients.leaves)
        grad_hidden = torch.empty_like(hidden) if hidden_needs else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for rows in _tiles(spec, hidden):
            tile = hidden[rows].detach().requires_grad_(hidden_needs)
            # Identity hooks: those of a caller (a checkpoint around the model) are not for a graph
            # that ends here.
            with torch.enable_grad(), saved_tensors_hooks(_same, _same):
                logits = spec.recipe.apply(tile, head)
            loss, grad = _cross_entropy_and_gradient(
                logits.detach().float(), labels[rows], spec.ignore_index
            )
            total += loss
            if early:
                grad /= divisor.where(divisor != 0, 1)  # without labels: zeros, as torch has it
            if logits.requires_grad:
                torch.autograd.backward(logits, grad.to(logits.dtype))
            del logits, grad
            if grad_hidden is not None and tile.grad is not None:
                grad_hidden[rows] = tile.grad
        ctx.held = (grad_hidden, gradients.collect_wide() if params_need else ())
        ctx.divisor = None if early else divisor
        ctx.dtypes = [param.dtype for param in params]
        return total / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if ctx.held is None:
            raise MemoError(SECOND_BACKWARD)
        (grad_hidden, wide), ctx.held = ctx.held, None
        scale = (
            grads[0] if ctx.divisor is None else grads[0] / ctx.divisor.where(ctx.divisor != 0, 1)
        )
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale.to(torch.float32))
        dtypes = (
            zip(wide, ctx.dtypes, strict=True) if wide else ((None, dtype) for dtype in ctx.dtypes)
        )
        grad_params = [None if g is None else g.mul_(scale).to(dtype) for g, dtype in dtypes]
        return (None, None, grad_hidden, None, *grad_params)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _tiles(spec: LossSpec, hidden: Tensor) -> Iterator[slice]:
    step = spec.tile_tokens(hidden.device)
    for start in range(0, hidden.shape[0], step):
        yield slice(start, min(start + step, hidden.shape[0]))


def _divisor(spec: LossSpec, labels: Tensor) -> Tensor:
    if spec.divisor is None:
        return (labels != spec.ignore_index).sum().float()
    if isinstance(spec.divisor, Tensor):
        return spec.divisor.to(labels.device, torch.float32, non_blocking=True)
    # Filled on the device: a number that is copied there would make the host wait.
    return torch.full((), spec.divisor, dtype=torch.float32, device=labels.device)


def _cross_entropy_sum(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")


def _cross_entropy_and_gradient(
    logits: Tensor, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The sum of losses, and its gradient (softmax minus one at the label) written over
    `logits`: no copy is made.
    """
    counted = labels != ignore_index
    index = labels.where(counted, 0).unsqueeze(-1)
    lse = logits.logsumexp(-1, keepdim=True)
    loss = ((lse - logits.gather(-1, index)).squeeze(-1) * counted).where(counted, 0).sum()
    grad = logits.sub_(lse).exp_()
    grad.scatter_add_(-1, index, torch.full_like(lse, -1.0))
    grad.masked_fill_(~counted.unsqueeze(-1), 0)
    return loss, grad
