"""How a model calls its layers: arguments caught from a forward on a few random tokens.

Scope: running the model until every kind of layer has been called, and turning what was caught
into something that a check can run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from offload import MemoError

TOKENS, TILE_TOKENS, BATCH = 67, 24, 2
"""Two rows and three tiles, the last one short: enough to see any mixing of tokens or rows."""

_COPY_BYTES = 2 << 30
"""Layers up to this size are checked on a float32 copy, where a real difference stands out from
rounding.
"""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """How the model called a layer: its arguments, hidden states first."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Captured(BaseException):
    """All kinds of layers have been called; the rest of the model need not run."""


def capture_calls(
    model: nn.Module, samples: dict[str, nn.Module], ids: Tensor
) -> dict[str, LayerCall]:
    """Run the model on a few tokens until each sample layer has been called."""
    calls: dict[str, LayerCall] = {}

    def hook(kind: str) -> Any:
        def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = dict(kwargs)
            x = args[0] if args else rest.pop("hidden_states")
            calls[kind] = LayerCall((x, *args[1:]), rest)
            if len(calls) == len(samples):
                raise _Captured

        return capture

    handles = [
        layer.register_forward_pre_hook(hook(kind), with_kwargs=True)
        for kind, layer in samples.items()
    ]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except _Captured:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if missing := samples.keys() - calls.keys():
        raise MemoError(f"the model's forward never called its layers {sorted(missing)}")
    return calls


def some_ids(model: nn.Module) -> Tensor:
    """Random ids as [BATCH, TOKENS]."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.randint(1, embedding.weight.shape[0], (BATCH, TOKENS))
    return ids.to(embedding.weight.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def checkable(layer: nn.Module) -> tuple[nn.Module, torch.dtype]:
    """A layer to run checks on, and its dtype: a float32 copy where one fits."""
    params = list(layer.parameters())
    dtype = params[0].dtype if params else torch.float32
    size_bytes = sum(4 * p.numel() for p in params)
    if dtype in (torch.float32, torch.float64) or size_bytes > _COPY_BYTES:
        return layer, dtype
    return copy.deepcopy(layer).float(), torch.float32


def cast(call: LayerCall, dtype: torch.dtype) -> LayerCall:
    """The call with floating-point tensors in `dtype`."""

    def to_dtype(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    args, kwargs = pytree.tree_map_only(Tensor, to_dtype, (call.args, call.kwargs))
    return LayerCall(args, kwargs)
