"""The tiled layer: one autograd Function for a whole decoder layer, run tile by tile in both
directions.

Scope: the Function, and what forward leaves for backward. The two directions are `forward.py` and
    `backward.py`.

Every placement runs the same operations on the same values in the same order, so gradients are
equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from offload.backward import TiledBackward
from offload.contracts import SECOND_BACKWARD, MemoError
from offload.forward import LayerMemory, TiledForward


def run_tiled(forward: TiledForward, x: Tensor) -> dict[str, Tensor]:
    """Run one call of one layer on `x` ([batch, tokens, hidden]).

    Returns y under "" and the auxiliary outputs by name, all [batch, tokens, ...]. When nothing
    takes a gradient, nothing is kept.
    """
    params = tuple(forward.split.params.values())
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *params))):
        return forward.run(x, None)
    names: list[str] = []
    outputs = _TiledLayer.apply(forward, names, x, *params)  # type: ignore[no-untyped-call]
    return dict(zip(names, outputs, strict=True))


class _TiledLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forward: TiledForward, names: list[str], x: Tensor, *params: Tensor
    ) -> Any:
        ctx.memory = LayerMemory(x_needs_grad=ctx.needs_input_grad[2])
        outputs = forward.run(x, ctx.memory)
        names.extend(outputs)
        ctx.forward_run = forward
        return tuple(_fresh(outputs, x).values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        memory, ctx.memory = ctx.memory, None
        if memory is None:
            raise MemoError(SECOND_BACKWARD)
        grad_x, grad_params = TiledBackward(ctx.forward_run, memory).run(grads)
        return (None, None, grad_x, *grad_params)


def _fresh(outputs: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    # A layer that returns its input unchanged must not hand autograd the input itself as an output.
    return {name: t.clone() if t.data_ptr() == x.data_ptr() else t for name, t in outputs.items()}
