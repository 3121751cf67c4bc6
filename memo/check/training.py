"""What a layer does in training only, where random numbers forbid comparing it with itself.

Scope: two questions to one tile in training mode. Does a token's output change when others of its
tile do? And do random numbers belong to tokens (dropout), or are some shared by all of them
(dropped paths, dropout with a broadcast mask), which tiles would draw each for itself?
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from memo.check.capture import TILE_TOKENS, LayerCall
from memo.check.difference import differs
from memo.layers import HFLayer, LayerArguments
from memo.switch import Switch
from offload import Tile

_SEED = 7


def training_reason(layer: nn.Module, call: LayerCall) -> str | None:
    """Why a layer that can be tiled in evaluation cannot be in training; None when it can."""
    x = call.args[0].detach()
    # A copy, so that whatever training updates is not the layer's own.
    module = copy.deepcopy(layer).train()
    with torch.no_grad():
        run = _TileRun.of(module, LayerCall((x, *call.args[1:]), call.kwargs))
        half, whole = TILE_TOKENS, 2 * TILE_TOKENS
        before, draws = run.outputs(x, half)
        _, draws_whole = run.outputs(x, whole)
        if draws_whole * half != draws * whole:
            return "in training it draws random numbers that tokens share"
        changed = x.clone()
        changed[:, half // 2 : half] += 1.0
        after, _ = run.outputs(changed, half)
    pairs = [(t[:, : half // 2] for t in pair) for pair in zip(after, before, strict=True)]
    mixes = any(differs([got], [expected], ["output"], x.dtype) for got, expected in pairs)
    return "in training its tokens mix outside attention" if mixes else None


@dataclass(slots=True)
class _TileRun:
    """Runs the first tokens of a layer to their end, with the same random numbers every time."""

    split: HFLayer
    o: Tensor

    @classmethod
    def of(cls, layer: nn.Module, call: LayerCall) -> _TileRun:
        x, *args = call.args
        arguments = LayerArguments(tuple(args), call.kwargs, x.shape[1])
        split = HFLayer(layer, arguments, Switch.of(layer, attention=True))
        return cls(split, _some_o(split, x))

    def outputs(self, x: Tensor, tokens: int) -> tuple[list[Tensor], int]:
        """y and q, k, v of the first `tokens` tokens, which are dim 1 of each, and how many random
        numbers were drawn for them.
        """
        torch.manual_seed(_SEED)
        with _Draws() as draws:
            out = self.split.run(
                x[:, :tokens], self.o[:, :tokens], Tile(0, 0, tokens), self.split.params
            )
        return [out.y, *(head.transpose(1, 2) for head in out.call.heads)], draws.count


def _some_o(split: HFLayer, x: Tensor) -> Tensor:
    """Random numbers in the place of attention's output, [batch, tokens, heads, head_dim]."""
    q, _, v = split.pre(x, Tile(0, 0, x.shape[1]), split.params).heads
    shape = (q.shape[0], q.shape[2], q.shape[1], v.shape[-1])
    return torch.randn(shape, device=q.device).to(q.dtype)


class _Draws(TorchDispatchMode):
    """Counts the random numbers that operations draw."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            leaves = pytree.tree_leaves(result)
            # One tensor is what was drawn; kernels that return more (fused dropout) return a mask
            # of the same shape beside it.
            self.count += next((t.numel() for t in leaves if isinstance(t, Tensor)), 0)
        return result
