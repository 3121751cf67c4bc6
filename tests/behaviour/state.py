"""Everything about a model that memo could leave changed, as plain data to compare.

Scope: attributes of every module and of every config, and the classes and registries that other
models share.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import output_capturing

NESTED = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
NESTED_BACKWARD = ("_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


@dataclass(frozen=True, slots=True)
class ModelState:
    """By module name; `shared` is what all models of the process see."""

    attributes: Mapping[str, Mapping[str, Any]]
    configs: Mapping[str, Mapping[str, Any]]
    shared: Mapping[str, Any]


def state_of(model: nn.Module) -> ModelState:
    """The state now; values are held, so that their identity means something."""
    modules = dict(model.named_modules())
    return ModelState(
        {name: _attributes(module) for name, module in modules.items()},
        {name: copy.deepcopy(vars(c)) for name, m in modules.items() if (c := _config(m))},
        _shared(modules),
    )


def assert_restored(model: nn.Module, before: ModelState) -> None:
    """Assert that the model is now as it was `before`: the same keys, in order, and the same values
    (the same objects, or equal plain ones).
    """
    now = state_of(model)
    assert list(now.attributes) == list(before.attributes)
    for name, attributes in before.attributes.items():
        _assert_same(f"module {name!r}", now.attributes[name], attributes)
    assert now.configs == before.configs
    _assert_same("shared", now.shared, before.shared)


def _assert_same(where: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    assert list(now) == list(before), where
    changed = [key for key, value in before.items() if not _is_same(now[key], value)]
    assert not changed, f"{where}: {changed}"


def _is_same(now: Any, before: Any) -> bool:
    if now is before:
        return True
    plain = not isinstance(before, Tensor | nn.Module)
    return plain and type(now) is type(before) and bool(now == before)


def _attributes(module: nn.Module) -> dict[str, Any]:
    attributes = dict(vars(module))
    for name in (*NESTED, *NESTED_BACKWARD):
        members = attributes.pop(name)
        attributes[f"{name}:"] = list(members)
        attributes |= {f"{name}.{key}": value for key, value in members.items()}
    return attributes


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _shared(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    classes = {type(module) for module in modules.values()}
    shared: dict[str, Any] = {
        f"{kind.__qualname__}.{name}": value
        for kind in sorted(classes, key=lambda kind: kind.__qualname__)
        for name, value in vars(kind).items()
    }
    for name in ("eager", "sdpa", "flex_attention"):
        shared[f"attention {name}"] = ALL_ATTENTION_FUNCTIONS.get(name)
    shared["collector"] = output_capturing._active_collector.get()
    return shared
