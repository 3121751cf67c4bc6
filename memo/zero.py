"""What DeepSpeed's ZeRO-3 has to know of a wrapped model, and a wrapped model of ZeRO-3.

Scope: attributes that DeepSpeed reads and sets; it is not imported unless it has a model's
parameters in parts already. A layer's parameters are gathered once per layer and pass, for all its
tiles: layers are ZeRO-3's *leaf modules*, whose submodules gather nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

_LEAF = "_z3_leaf"
"""Set by `deepspeed.utils.set_z3_leaf_modules` on modules, before `deepspeed.initialize`."""


def mark_leaves(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Make leaf modules of layers; returns those that were none, for `unmark_leaves`."""
    marked = [layer for layer in layers if not getattr(layer, _LEAF, False)]
    for layer in marked:
        layer.__dict__[_LEAF] = True
    return marked


def unmark_leaves(marked: Iterable[nn.Module]) -> None:
    """Take it back."""
    for layer in marked:
        layer.__dict__.pop(_LEAF, None)


@contextmanager
def whole_parameters(
    root: nn.Module, layers: Iterable[nn.Module], samples: Iterable[nn.Module]
) -> Iterator[None]:
    """Parameters of a model that was made in parts (under `deepspeed.zero.Init`, as transformers
    makes models when ZeRO-3 is configured) are whole inside, of those that run on the way to the
    last of the sample layers: all ranks of the job call it. Other models are left as they are.
    """
    needed = _needed(root, list(layers), list(samples))
    parts = [param for module in needed for param in module.parameters() if _is_part(param)]
    if not parts:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(dict.fromkeys(parts))):
        yield


def _needed(
    root: nn.Module, layers: list[nn.Module], samples: list[nn.Module]
) -> Iterator[nn.Module]:
    """Layers up to the last sample, and modules in no layer: embeddings, norms, heads."""
    last = max((layers.index(sample) for sample in samples), default=-1)
    yield from layers[: last + 1]
    inside = {child for layer in layers for child in layer.modules()}
    for module in root.modules():
        if module not in inside and not any(True for _ in module.children()):
            yield module


def _is_part(param: nn.Parameter) -> bool:
    return hasattr(param, "ds_id") and param.numel() == 0
