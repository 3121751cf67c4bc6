"""What the tests of behaviour share: small models, a batch, and looking at what a model holds.

Scope: nothing here asserts, but that a gradient is a derivative. Families, training steps and
comparisons are those of `tests.families`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

import memo.loss.tiled
from memo.wrap import runtime_of
from tests.families.catalogue import family_named
from tests.families.harness import Grads, Step, build, pair, random_batch, train_step

TILE_TOKENS, TOKENS = 5, 23
"""No multiple of one another."""

PLACEMENTS: tuple[Any, ...] = ("recompute", "keep", "host", {"keep": 0.5, "recompute": 0.5})


class Boom(Exception):
    """What a user's hook raises."""


def plain_model(name: str = "llama") -> PreTrainedModel:
    """A small random model of this family in train mode, the same each time."""
    return build(family_named(name))


def models(name: str = "llama", **options: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model twice: unwrapped, and wrapped with these options."""
    return pair(family_named(name), **{"tile_tokens": TILE_TOKENS, **options})


def wrapped_model(name: str = "llama", **options: Any) -> PreTrainedModel:
    """A wrapped model of this family."""
    return models(name, **options)[1]


def batch(rows: int = 2, *, seed: int = 1) -> dict[str, Any]:
    """Token ids and labels, [rows, TOKENS]."""
    return random_batch(rows, TOKENS, seed=seed)


def only_ids(rows: int = 2) -> dict[str, Any]:
    """A batch without labels."""
    return {"input_ids": batch(rows)["input_ids"]}


def module_step(
    module: nn.Module,
    inputs: dict[str, Any],
    loss_of: Callable[[Any], Tensor] = lambda output: output.loss,
) -> Step:
    """`train_step` for what is no model of transformers by its type: bodies, and PEFT's models."""
    return train_step(module, inputs, loss_of)  # type: ignore[arg-type]


def gradients(model: nn.Module) -> Grads:
    """The parameters' gradients by name, as they are."""
    return {name: param.grad for name, param in model.named_parameters()}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of `expected`."""
    return float(((got - expected).norm() / expected.norm()).detach())


def held_bytes(model: nn.Module) -> int:
    """Bytes in the store of a wrapped model, in all tiers."""
    return sum(count.held_bytes for count in runtime_of(model).store.counts.values())


def set_head_tile(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Let the head's tiles be of so many tokens, in place of as many as fill a processor."""
    monkeypatch.setattr(memo.loss.tiled.LossSpec, "tile_tokens", lambda *_: tokens)


def raiser(error: type[BaseException]) -> Callable[..., None]:
    """A hook of any kind that raises."""

    def hook(*_: Any) -> None:
        raise error

    return hook


@contextmanager
def attached(handle: RemovableHandle) -> Iterator[None]:
    """Remove a hook at the end, whatever happens inside."""
    try:
        yield
    finally:
        handle.remove()


def assert_gradient_is_derivative(
    model: nn.Module, inputs: dict[str, Any], *, only: str = "", tolerance: float = 1e-7
) -> None:
    """Hold the gradient of a float64 model against finite differences of the loss, along a random
    direction in the parameters whose names contain `only`; random numbers start anew each time.
    """
    seed, step = 11, 1e-3

    def loss_of(output: Any) -> Tensor:
        loss: Tensor = output.logits.sin().mean()
        return loss

    torch.manual_seed(seed)
    grads = module_step(model, inputs, loss_of).grads
    params = {n: p for n, p in model.named_parameters() if only in n and p.requires_grad}
    direction = _unit(params)

    def loss_at(distance: float) -> float:
        with _moved(params, direction, distance):
            torch.manual_seed(seed)
            return float(loss_of(model(**inputs)).detach())

    near, far = (loss_at(d) - loss_at(-d) for d in (step, 2 * step))
    derivative = (8 * near - far) / (12 * step)
    along = sum(float((_given(grads[name]) * direction[name]).sum()) for name in params)
    assert derivative != 0
    assert math.isclose(along, derivative, rel_tol=tolerance), f"{along} is not {derivative}"


def _unit(params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    drawn = {name: torch.randn_like(param) for name, param in params.items()}
    norm = torch.stack([part.norm() for part in drawn.values()]).norm()
    return {name: part / norm for name, part in drawn.items()}


@contextmanager
def _moved(
    params: dict[str, nn.Parameter], direction: dict[str, Tensor], distance: float
) -> Iterator[None]:
    before = {name: param.detach().clone() for name, param in params.items()}
    with torch.no_grad():
        for name, param in params.items():
            param.add_(direction[name], alpha=distance)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, param in params.items():
                param.copy_(before[name])


def _given(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad
