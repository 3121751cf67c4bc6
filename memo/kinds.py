"""Finding a model in its wrappers, its decoder layers and norms, and telling kinds of layers apart.

Scope: names and structure; whether a kind can be tiled is `check.py`'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from memo.runtime import WrappedLayer
from offload import MemoError


def root_of(model: nn.Module) -> PreTrainedModel:
    """The outermost Hugging Face model: `model` itself, or the one within PEFT's or another
    wrapper.

    Raises:
        MemoError: for what is none, and has none in it.
    """
    if not isinstance(model, nn.Module):
        raise MemoError(f"memo wraps Hugging Face models, not a {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise MemoError(f"memo wraps Hugging Face models, and {type(model).__name__} has none in it")


def find_layers(model: nn.Module) -> list[WrappedLayer]:
    """The outermost decoder layers, each with its kind.

    Layers of one class are of different kinds when their submodules or switches differ (hybrid
    models, sparse and dense MLPs in one class): a kind is then named by its class and a number.
    """
    modules = _outermost_layers(model)
    kinds: dict[Hashable, str] = {}
    names: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    layers = []
    for module in modules:
        structure = _structure(module)
        if structure not in kinds:
            name = type(module).__name__
            names[name] += 1
            kinds[structure] = name if names[name] == 1 else f"{name} #{names[name]}"
        kind = kinds[structure]
        layers.append(WrappedLayer(module, kind, counts[kind]))
        counts[kind] += 1
    return layers


def _outermost_layers(model: nn.Module) -> list[nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not any(
            name.startswith(f"{outer}.") for outer in found
        ):
            found[name] = module
    return list(found.values())


def samples_of(layers: list[WrappedLayer]) -> dict[str, nn.Module]:
    """The first layer of each kind."""
    samples: dict[str, nn.Module] = {}
    for layer in layers:
        samples.setdefault(layer.kind, layer.module)
    return samples


def owners_of(root: nn.Module, layers: list[WrappedLayer]) -> list[nn.Module]:
    """Every Hugging Face model that has the layers in it: the body may be called on its own."""
    inside = {id(layer.module) for layer in layers}
    return [
        module
        for module in root.modules()
        if isinstance(module, PreTrainedModel)
        and any(id(child) in inside for child in module.modules())
    ]


def find_norms(model: nn.Module, layers: list[WrappedLayer]) -> list[nn.Module]:
    """Norms outside the layers, by their form: no submodules, and vectors for parameters."""
    inside = {id(module) for layer in layers for module in layer.module.modules()}
    return [
        module
        for module in model.modules()
        if id(module) not in inside
        and "norm" in type(module).__name__.lower()
        and _is_vectors(module)
    ]


def _is_vectors(module: nn.Module) -> bool:
    params = list(module.parameters())
    return not list(module.children()) and bool(params) and all(p.ndim == 1 for p in params)


def _structure(layer: nn.Module) -> Hashable:
    return tuple((name, type(module), _switches(module)) for name, module in layer.named_modules())


def _switches(module: nn.Module) -> Hashable:
    # Flags, names and numbers such as `is_sliding` or `layer_type` choose between code paths of one
    # class. What only tells where a layer stands is none of them.
    return tuple(
        sorted(
            (name, repr(value))
            for name, value in vars(module).items()
            if isinstance(value, bool | str | int | float | None)
            and name not in ("training", "gradient_checkpointing")
            and not name.endswith(("_idx", "_id", "_index", "layer_number"))
        )
    )
