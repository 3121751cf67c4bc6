"""Building a family's models, taking one training step, and comparing two steps.

Scope: what all tests of families share. Nothing here asserts about memo itself but `wrap_family`,
which asserts how each kind of layer runs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import memo
from tests.families.catalogue import VOCABULARY, Family

TOLERANCE = 1e-5
"""Relative error that float32 sums in another order may have."""

FLOOR = 1e-2
"""Gradients smaller than this share of the largest one are measured against that share of it.

A key's bias without rotary embedding has a gradient of exactly zero in exact arithmetic, and
rounding noise of about 1e-8 of the largest gradient in float32; relative to itself that noise is
anything.
"""

Grads = dict[str, Tensor | None]


@dataclass(frozen=True, slots=True)
class Step:
    """The loss and every parameter's gradient, by name, of one training step."""

    loss: Tensor
    grads: Grads


def build(family: Family, *, seed: int = 0) -> PreTrainedModel:
    """A model in float32 and train mode whose parameters are all random: the biases and norms that
    start at 0 or 1 are moved too, so that each of them matters.
    """
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        family.config(), attn_implementation=family.reference
    )
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param), alpha=0.1)
    model.train()
    return model


def wrap_family(family: Family, model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """Wrap, and assert that kinds of layers run as the catalogue says, with a warning where it
    runs whole.
    """
    with expected_warnings(not family.is_tiled):
        memo.wrap(model, **options)
    modes = {"tiled" if kind.tiled else "whole" for kind in memo.report(model).kinds}
    assert modes == set(family.modes), str(memo.report(model))
    return model


@contextmanager
def expected_warnings(whole: bool) -> Iterator[None]:
    """Ask for memo's warning about layers that run whole, or for no warning of memo at all."""
    if whole:
        with pytest.warns(memo.MemoWarning, match="run whole"):
            yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", memo.MemoWarning)
        yield


def pair(
    family: Family, *, seed: int = 0, **options: Any
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model twice: unwrapped, and wrapped with these options."""
    plain = build(family, seed=seed)
    return plain, wrap_family(family, copy.deepcopy(plain), **options)


def random_ids(batch: int, tokens: int, *, seed: int = 1) -> Tensor:
    """Token ids, [batch, tokens], none of them a special token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)


def random_batch(batch: int, tokens: int, *, seed: int = 1) -> dict[str, Any]:
    """Token ids and labels, [batch, tokens], a few labels of them left out of the loss."""
    ids = random_ids(batch, tokens, seed=seed)
    labels = ids.clone()
    labels[:, 2:7:4] = -100
    return {"input_ids": ids, "labels": labels}


def train_step(
    model: PreTrainedModel,
    batch: dict[str, Any],
    loss_of: Callable[[Any], Tensor] = lambda output: output.loss,
) -> Step:
    """Forward and backward from gradients that are None; they are None again afterwards."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model(**batch))
    loss.backward()
    grads = {name: param.grad for name, param in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return Step(loss.detach(), grads)


def global_norm(grads: Grads) -> float:
    """The norm of all gradients together."""
    return float(torch.stack([g.double().norm() for g in grads.values() if g is not None]).norm())


def global_error(got: Grads, expected: Grads) -> float:
    """The norm of the difference of all gradients, relative to that of `expected`."""
    difference = {
        name: _or_zero(got[name], want).double() - want.double()
        for name, want in expected.items()
        if want is not None
    }
    return global_norm(dict(difference)) / global_norm(expected)


def assert_same_step(
    got: Step, expected: Step, *, tolerance: float = TOLERANCE, floor: float = FLOOR
) -> None:
    """The loss, and each gradient relative to its own norm (or `floor` times the largest)."""
    loss_error = abs(float(got.loss) - float(expected.loss)) / abs(float(expected.loss))
    assert loss_error <= tolerance, f"loss is off by {loss_error:.1e}"
    assert_same_grads(got.grads, expected.grads, tolerance=tolerance, floor=floor)


def assert_same_grads(
    got: Grads, expected: Grads, *, tolerance: float = TOLERANCE, floor: float = FLOOR
) -> None:
    """Each gradient relative to its own norm (or `floor` times the largest); the same ones None."""
    assert got.keys() == expected.keys()
    norms = {name: float(grad.norm()) for name, grad in expected.items() if grad is not None}
    largest = max(norms.values())
    assert largest > 0
    wrong = {}
    for name, want in expected.items():
        have = got[name]
        if want is None:
            assert have is None or not have.any(), f"{name} has a gradient, and should have none"
            continue
        scale = max(norms[name], floor * largest)
        error = float((_or_zero(have, want) - want).norm()) / scale
        if not error <= tolerance:
            wrong[name] = f"{error:.1e}"
    assert not wrong, f"gradients are off: {wrong}"


def assert_equal_grads(got: Grads, expected: Grads) -> None:
    """Bit by bit."""
    assert got.keys() == expected.keys()
    different = [name for name, want in expected.items() if not _is_equal(got[name], want)]
    assert not different, f"gradients differ: {different}"


def _is_equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
