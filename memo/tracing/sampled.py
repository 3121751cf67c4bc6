"""A model of which only what a timed step runs has weights: one layer of each class, and the ends.

Scope: building it from a config, with random weights. Its other layers have none, and hand on what
they are given (`runtime.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from memo.kinds import find_layers, root_of
from memo.tracing.models import refusals_told, without_initialising

_SPREAD = 0.02
"""Of weights: what most configs have as `initializer_range`."""

_NOISE = 65_537
"""Random numbers that are made, and repeated: matmuls are as fast as with others."""


@dataclass(frozen=True, slots=True)
class SampledModel:
    """`model` without weights until `fill`, which gives them to the modules `run`."""

    model: nn.Module
    run: tuple[nn.Module, ...]

    @classmethod
    def of(cls, config: PreTrainedConfig, dtype: torch.dtype) -> SampledModel:
        """The causal LM of a config, in training mode.

        Raises:
            MemoError: for a config that transformers has no causal LM for, or makes none of.
        """
        text = copy.deepcopy(config.get_text_config())  # a model writes its dtype into its config
        with refusals_told(config):
            with _weights_on_meta(), without_initialising():
                model: nn.Module = AutoModelForCausalLM.from_config(text, dtype=dtype)
            model.tie_weights()  # type: ignore[operator]  # is left out with the initialising
        return cls(model.train(), tuple(_run_modules(model)))

    @property
    def weights(self) -> list[Tensor]:
        """Of the modules that run, each once."""
        found = (p for module in self.run for p in module._parameters.values() if p is not None)
        return list({id(param): param for param in found}.values())

    @property
    def matmul_parameters(self) -> int:
        """Of the weights that tokens are multiplied with, and of the embedding."""
        return sum(weight.numel() for weight in self.weights if weight.ndim > 1)

    def fill(self, device: torch.device) -> nn.Module:
        """The model with random weights on `device`; vectors (norms, biases) are ones."""
        made: dict[int, nn.Parameter] = {}
        noise = torch.randn(_NOISE, device=device) * _SPREAD
        for module in self.run:
            for name, param in module._parameters.items():
                if param is not None:
                    if id(param) not in made:
                        filled = _filled(param, noise)
                        made[id(param)] = nn.Parameter(filled, requires_grad=param.requires_grad)
                    module._parameters[name] = made[id(param)]
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        return self.model


def _run_modules(model: nn.Module) -> Iterator[nn.Module]:
    """All but those of layers after the first of their kind."""
    firsts, others = set[str](), set[int]()
    run: set[int] = set()
    for layer in find_layers(root_of(model)):
        ids = {id(module) for module in layer.module.modules()}
        if layer.kind in firsts:
            others |= ids
        else:
            firsts.add(layer.kind)
            run |= ids
    yield from (m for m in model.modules() if id(m) in run or id(m) not in others)


def _filled(param: Tensor, noise: Tensor) -> Tensor:
    if param.ndim < 2:
        return torch.ones(param.shape, dtype=param.dtype, device=noise.device)
    filled = torch.empty(param.shape, dtype=param.dtype, device=noise.device)
    flat = filled.view(-1)
    whole = flat.numel() // len(noise) * len(noise)
    flat[:whole].view(-1, len(noise)).copy_(noise.expand(whole // len(noise), -1))
    flat[whole:].copy_(noise[: flat.numel() - whole])
    return filled


@contextmanager
def _weights_on_meta() -> Iterator[None]:
    """Parameters that are made inside have no memory; buffers have (rotary tables are computed)."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None:
            empty = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            module._parameters[name] = empty

    with patch.object(nn.Module, "register_parameter", on_meta):
        yield
