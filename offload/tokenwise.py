"""A module that treats tokens alone (a final norm), run tile by tile and rebuilt in backward.

Scope: modules outside the layers. Between forward and backward only the module's input is held; a
float32 norm of a bf16 sequence would else hold several times as much, just when the loss needs the
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from offload.contracts import Tile
from offload.gradients import ParameterGradients
from offload.replay import AutocastState
from offload.tiles import Joined, tile_of

TokenwiseForward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(parameters by name, x [batch, tokens, ...]) to y [batch, tokens, ...]."""


def run_tokenwise(
    forward: TokenwiseForward, params: Mapping[str, Tensor], x: Tensor, tiles: tuple[Tile, ...]
) -> Tensor:
    """`forward(params, x)`, one tile at a time."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *params.values())):
        y: Tensor = _Tokenwise.apply(forward, tuple(params), tiles, x, *params.values())  # type: ignore[no-untyped-call]
        return y
    return _forward(forward, params, x, tiles)


def _forward(
    forward: TokenwiseForward, params: Mapping[str, Tensor], x: Tensor, tiles: tuple[Tile, ...]
) -> Tensor:
    joined = Joined(x.shape[1])
    with torch.no_grad():
        for tile in tiles:
            joined.write(tile, forward(params, tile_of(x, tile)))
    return joined.value()


class _Tokenwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        forward: TokenwiseForward,
        names: tuple[str, ...],
        tiles: tuple[Tile, ...],
        x: Tensor,
        *params: Tensor,
    ) -> Tensor:
        ctx.run, ctx.names, ctx.tiles = forward, names, tiles
        ctx.autocast = AutocastState.capture(x.device.type)
        ctx.save_for_backward(x, *params)
        return _forward(forward, dict(zip(names, params, strict=True)), x, tiles)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, *params = ctx.saved_tensors
        x_needs_grad = ctx.needs_input_grad[3]
        gradients = ParameterGradients(dict(zip(ctx.names, params, strict=True)))
        grad_x = Joined(x.shape[1])
        with ctx.autocast.restored():
            for tile in ctx.tiles:
                leaf = tile_of(x, tile).detach().requires_grad_(x_needs_grad)
                with torch.enable_grad():
                    y = ctx.run(gradients.leaves, leaf)
                torch.autograd.backward(y, grad_y.narrow(1, tile.start, tile.tokens))
                if leaf.grad is not None:
                    grad_x.write(tile, leaf.grad)
        return (None, None, None, grad_x.value_or_none(ctx.tiles), *gradients.collect())
