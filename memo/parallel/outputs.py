"""What a model returns, made whole: every rank gets the outputs of all tokens.

Scope: outputs per token of a rank's share, by their names in transformers. Gradients that come back
through them are scaled as those of the loss are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memo.loss.lazy import LazyLogits, LogitsRecipe
from memo.parallel.core import ParallelCore
from memo.parallel.loss import gather_tokens
from memo.parallel.view import SequenceView
from offload import MemoError

_AGREED = frozenset({"loss", "aux_loss", "router_logits"})
"""Outputs that are those of the whole already."""


def gather_auxiliary(outputs: Mapping[str, Tensor], core: ParallelCore) -> dict[str, Tensor]:
    """A layer's auxiliary outputs (router logits) of own tokens, [batch, tokens, ...], as those of
    all: a router loss is no mean over tokens, so it takes all of them.

    Those of padding are left out, as [1, real tokens, ...]: a router loss does not count them, and
    the model has no mask to tell them by.
    """
    wholes = {name: _gathered(tensor, core) for name, tensor in outputs.items()}
    if not core.view.is_padded:
        return wholes
    return {name: _without_padding(tensor, core.view) for name, tensor in wholes.items()}


def _without_padding(whole: Tensor, view: SequenceView) -> Tensor:
    rows = view.rows if len(view.rows) > 1 else view.rows * whole.shape[0]
    real = [tokens[slice(*row.valid)] for tokens, row in zip(whole, rows, strict=True)]
    return torch.cat(real).unsqueeze(0)


def make_whole(output: Any, core: ParallelCore) -> None:
    """Replace a model output's tensors of own tokens with those of all tokens.

    Logits that were not made, because a loss was tiled, are refused when they are read: made whole
    they would be what the tiling saves, on every rank.

    Raises:
        MemoError: for an output that is not per token, or that memo does not know how to make
            whole.
    """
    if getattr(output, "aux_loss", None) is not None and output.router_logits is None:
        raise MemoError(
            f"{type(output).__name__} has an aux_loss that is not made of router_logits: it would "
            "be that of one rank's tokens"
        )
    for name, value in list(output.items()):
        if name not in _AGREED:
            output[name] = _whole(name, value, core)


def _whole(name: str, value: Any, core: ParallelCore) -> Any:
    if isinstance(value, tuple):
        return tuple(_whole(name, part, core) for part in value)
    if isinstance(value, LazyLogits):
        return _refusing(value, core.view.shares.total_tokens)
    if not isinstance(value, Tensor):
        return value
    start, stop = core.view.own
    if value.ndim < 3 or value.shape[1] != stop - start:
        raise MemoError(
            f"the model's output {name} of shape {tuple(value.shape)} is not per token: under "
            f"sequence parallelism this rank has {stop - start} of "
            f"{core.view.shares.total_tokens} tokens"
        )
    return _gathered(value, core)


def _gathered(own: Tensor, core: ParallelCore) -> Tensor:
    return gather_tokens(
        own, core.view.shares, core.wire, gradient_scale=float(core.wire.group.size)
    )


def _refusing(lazy: LazyLogits, total_tokens: int) -> LazyLogits:
    """Logits of the whole sequence's shape, without memory, that raise when they are read."""
    batch, _, size = lazy.hidden.shape
    nothing = lazy.hidden.detach().new_empty(1).expand(batch, total_tokens, size)
    recipe = LogitsRecipe(nn.Identity(), (), _refuse)
    return LazyLogits.of(nothing, recipe, lazy.shape[-1], lazy.dtype)


def _refuse(why: str) -> None:
    raise MemoError(
        f"logits were asked for ({why}) under sequence parallelism, where a loss is computed "
        "without them and each rank has a share: call the model without labels, or wrap it with "
        "tiled_loss=False, and every rank gets them whole"
    )
