"""Liger's RMSNorm and SwiGLU, put into a model by its user: memo runs them, tile by tile.

Liger's kernels need Triton and a GPU, so stand-ins in plain torch are applied in the two ways in
which `liger_kernel.transformers.monkey_patch` applies Liger's: classes replaced in the modeling
file before a model is made, or `forward` bound to the modules of one that exists. They keep Liger's
habits in backward, which autograd does not see: dx is written over dy, da and db over a and b.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

import memo
from tests.behaviour.common import PLACEMENTS, TILE_TOKENS, TOKENS, batch, plain_model
from tests.behaviour.state import assert_restored, state_of
from tests.families.catalogue import family_named
from tests.families.harness import (
    Step,
    assert_equal_grads,
    assert_same_step,
    train_step,
    wrap_family,
)

FAMILIES = {"llama": "Llama", "qwen3": "Qwen3", "mistral": "Mistral"}
"""model_type: how its classes begin."""

WAYS = ("classes", "instances")


class _RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        return (x.float() * rstd).to(x.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        grad = grad.contiguous()
        normed, scaled = x.float() * rstd, (grad * weight).float()
        grad_weight = (grad * normed.to(x.dtype)).flatten(0, -2).sum(0)
        grad_x = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
        grad.data.copy_(grad_x)
        return grad, grad_weight, None


class _SiLUMulFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        ctx.save_for_backward(a, b)
        return functional.silu(a) * b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        sigmoid = torch.sigmoid(a)
        silu = a * sigmoid
        grad_a = grad * (silu * (1 - sigmoid) + sigmoid) * b
        b.data.copy_(grad * silu)
        a.data.copy_(grad_a)
        return a, b


class _Noted(nn.Module):
    """What both stand-ins share: `seen` has the modules that ran, and on how many tokens."""

    seen: list[tuple[nn.Module, int]]


class LigerRMSNorm(_Noted):
    """As `liger_kernel.transformers.rms_norm.LigerRMSNorm`."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self, x.shape[1]))
        y: Tensor = _RMSNormFunction.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return y


class LigerSwiGLUMLP(_Noted):
    """As `liger_kernel.transformers.swiglu.LigerSwiGLUMLP`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self, x.shape[1]))
        product = _SiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
        y: Tensor = self.down_proj(product)
        return y


@dataclass(slots=True)
class Liger:
    """The stand-ins applied to one model, and what ran."""

    model: PreTrainedModel
    seen: list[tuple[nn.Module, int]] = field(default_factory=list)

    @property
    def body(self) -> Any:
        return self.model.model

    def __post_init__(self) -> None:
        for module in self.modules():
            module.__dict__["seen"] = self.seen

    def modules(self) -> list[nn.Module]:
        """The modules that Liger stands in for."""
        inside = [m for layer in self.body.layers for m in layer.modules() if _is_liger(m)]
        return [*inside, self.body.norm]


def _is_liger(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("RMSNorm", "MLP"))


def applied(way: str, name: str = "llama") -> Liger:
    """A small model with the stand-ins; its parameters are those of `plain_model(name)`."""
    if way == "instances":
        return bound_to(plain_model(name))
    modeling = import_module(f"transformers.models.{name}.modeling_{name}")
    prefix = FAMILIES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, f"{prefix}RMSNorm", LigerRMSNorm)
        patch.setattr(modeling, f"{prefix}MLP", LigerSwiGLUMLP)
        return Liger(plain_model(name))


def bound_to(model: PreTrainedModel) -> Liger:
    """As `_bind_method_to_module` does it, on a model that exists."""
    liger = Liger(model)
    for module in liger.modules():
        stand_in: Any = LigerSwiGLUMLP if type(module).__name__.endswith("MLP") else LigerRMSNorm
        module.__dict__["forward"] = stand_in.forward.__get__(module, type(module))
    return liger


def wrapped(liger: Liger, name: str = "llama", **options: Any) -> Liger:
    """The same model with memo around it; its layers must run tiled."""
    wrap_family(family_named(name), liger.model, tile_tokens=TILE_TOKENS, **options)
    return liger


def step(liger: Liger) -> Step:
    """A training step on two rows; `seen` then has what ran in it."""
    liger.seen.clear()  # the self-check runs them too
    return train_step(liger.model, batch())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_unwrapped_model(name: str, way: str, placement: Any) -> None:
    expected = step(applied(way, name))
    assert_same_step(expected, train_step(plain_model(name), batch()))
    liger = wrapped(applied(way, name), name, placement=placement)
    assert_same_step(step(liger), expected)
    assert_equal_grads(step(liger).grads, step(liger).grads)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_stand_ins_run_tile_by_tile(name: str, way: str) -> None:
    liger = wrapped(applied(way, name), name)
    step(liger)
    body = liger.body
    tokens: dict[nn.Module, list[int]] = {module: [] for module in liger.modules()}
    for module, count in liger.seen:
        tokens[module].append(count)
    last = tokens.pop(body.norm)
    tiles = [TILE_TOKENS] * (TOKENS // TILE_TOKENS) + [TOKENS % TILE_TOKENS]
    per_layer = {"llama": 3, "qwen3": 5, "mistral": 3}[name]
    assert len(tokens) == per_layer * len(body.layers)
    for module, counts in tokens.items():
        # Forward, and again in backward, where tiles come in another order.
        assert counts[: len(tiles)] == tiles, type(module).__name__
        assert set(counts[len(tiles) :]) == set(tiles)
    # A norm outside the layers whose own forward is not its class's is left as its user made it.
    assert last[: len(tiles)] == (tiles if way == "classes" else [TOKENS])


def test_applied_to_the_instances_of_a_wrapped_model() -> None:
    expected = train_step(plain_model(), batch())
    model = memo.wrap(plain_model(), tile_tokens=TILE_TOKENS)
    liger = bound_to(model)
    assert_same_step(step(liger), expected)
    assert {module for module, _ in liger.seen} == set(liger.modules())
    assert memo.report(model).kinds[0].calls == len(liger.body.layers)


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_and_unwrap_leave_them_in_place(way: str) -> None:
    liger = applied(way)
    with torch.no_grad():
        expected = liger.model(**batch()).loss
    state = state_of(liger.model)
    wrapped(liger).seen.clear()
    with torch.no_grad():
        torch.testing.assert_close(liger.model(**batch()).loss, expected, rtol=1e-6, atol=0)
    assert {module for module, _ in liger.seen} == set(liger.modules())
    assert_restored(memo.unwrap(liger.model), state)
