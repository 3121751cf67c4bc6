"""Gradient accumulation and scaled losses: every gradient, the head's above all.

A tiled loss makes its gradients in forward; what comes in from behind must scale all of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.behaviour.common import batch, gradients, models, set_head_tile
from tests.families.harness import Grads, assert_same_grads, assert_same_step, train_step

HEAD = "lm_head.weight"


@pytest.fixture(autouse=True)
def head_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head in tiles of 7 tokens; the families' tests run it all at once."""
    set_head_tile(monkeypatch, 7)


def accumulated(model: PreTrainedModel, parts: list[dict[str, Any]], scale: float) -> Grads:
    """Gradients of the scaled losses of all parts, one backward each."""
    model.zero_grad(set_to_none=True)
    for part in parts:
        (model(**part).loss * scale).backward()
    return gradients(model)


def rows_of(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """The batch as batches of one row."""
    count = whole["input_ids"].shape[0]
    return [{name: tensor[i : i + 1] for name, tensor in whole.items()} for i in range(count)]


@pytest.mark.parametrize("tiled_loss", [True, False])
def test_four_parts_equal_the_whole(tiled_loss: bool) -> None:
    plain, wrapped = models(tiled_loss=tiled_loss)
    whole = batch(4)
    expected = train_step(plain, whole).grads
    # As many labels count in each row, so the mean of means is the mean.
    got = accumulated(wrapped, rows_of(whole), 1 / 4)
    assert_same_grads({HEAD: got[HEAD]}, {HEAD: expected[HEAD]})
    assert_same_grads(got, expected)
    assert_same_grads(train_step(wrapped, whole).grads, expected)


def test_four_different_batches() -> None:
    plain, wrapped = models()
    parts = [batch(2, seed=seed) for seed in range(4)]
    assert_same_grads(accumulated(wrapped, parts, 0.25), accumulated(plain, parts, 0.25))


@pytest.mark.parametrize("count", [77, torch.tensor(77), torch.tensor(77.0)], ids=repr)
def test_num_items_in_batch(count: Any) -> None:
    plain, wrapped = models()
    inputs = batch() | {"num_items_in_batch": count}
    got = train_step(wrapped, inputs)
    assert_same_step(got, train_step(plain, inputs))
    assert float(got.loss) < 0.6 * float(train_step(wrapped, batch()).loss)


def test_num_items_over_ragged_parts() -> None:
    # What Trainer does: parts with different numbers of labels, divided by all of them.
    plain, wrapped = models()
    whole = batch(4)
    whole["labels"][1, 3:] = -100
    whole["labels"][2, :15] = -100
    count = int((whole["labels"][:, 1:] != -100).sum())
    parts = [part | {"num_items_in_batch": torch.tensor(count)} for part in rows_of(whole)]
    assert_same_grads(accumulated(wrapped, parts, 1.0), train_step(plain, whole).grads)


@pytest.mark.parametrize("scale", [1024.0, 1e-3, -2.0])
def test_scaled_losses(scale: float) -> None:
    plain, wrapped = models()
    steps = [train_step(m, batch(), lambda out: out.loss * scale) for m in (wrapped, plain)]
    assert_same_step(*steps)


def test_a_loss_of_the_loss() -> None:
    plain, wrapped = models()
    steps = [train_step(m, batch(), lambda out: out.loss.exp()) for m in (wrapped, plain)]
    assert_same_step(*steps)


def test_two_forwards_and_one_backward() -> None:
    plain, wrapped = models()
    results = []
    for model in (wrapped, plain):
        first, second = (model(**batch(seed=seed)).loss for seed in (1, 2))
        (first + 3 * second).backward()
        results.append(gradients(model))
    assert_same_grads(*results)


def test_gradients_asked_for_by_autograd_grad() -> None:
    results = []
    for model in reversed(models()):
        names, params = zip(*model.named_parameters(), strict=True)
        results.append(
            dict(zip(names, torch.autograd.grad(model(**batch()).loss, params), strict=True))
        )
        assert all(param.grad is None for param in params)
    assert_same_grads(*results)


def test_the_gradient_of_one_parameter_alone() -> None:
    results: list[Grads] = []
    for model in reversed(models()):
        weight = model.get_parameter("model.layers.1.mlp.up_proj.weight")
        results.append({"up": torch.autograd.grad(model(**batch()).loss, weight)[0]})
    assert_same_grads(*results)
