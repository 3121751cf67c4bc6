"""Labels: shifted by the caller, left out of the loss, all left out; NaN that passes through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import memo
from tests.behaviour.common import batch, models, set_head_tile
from tests.families.harness import assert_same_step, random_ids, train_step


@pytest.fixture(autouse=True)
def head_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head in tiles of 7 tokens; the families' tests run it all at once."""
    set_head_tile(monkeypatch, 7)


def shifted(labels: Tensor, fill: int = -100) -> Tensor:
    """What each token is to predict, [batch, tokens]."""
    return functional.pad(labels, (0, 1), value=fill)[:, 1:].contiguous()


@pytest.mark.parametrize("labels", ["the same", "others"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_shift_labels_beside_labels(name: str, labels: str) -> None:
    # `shift_labels` count, `labels` only say that a loss is wanted.
    plain, wrapped = models(name)
    inputs = batch()
    inputs["shift_labels"] = shifted(inputs["labels"])
    if labels == "others":
        inputs["labels"] = random_ids(2, 23, seed=9)
    got = train_step(wrapped, inputs)
    assert_same_step(got, train_step(plain, inputs))
    assert_same_step(got, train_step(plain, batch()))
    assert not memo.report(wrapped).notes


def test_shift_labels_alone_give_what_the_model_gives() -> None:
    plain, wrapped = models()
    inputs = {"input_ids": batch()["input_ids"], "shift_labels": shifted(batch()["labels"])}
    assert plain(**inputs).loss is None
    assert wrapped(**inputs).loss is None


@pytest.mark.parametrize("ignored", [slice(0, 20), slice(3, None), slice(1, 2)])
def test_ignored_labels_give_nothing(ignored: slice) -> None:
    plain, wrapped = models()
    inputs = batch()
    inputs["labels"][:, ignored] = -100
    got = train_step(wrapped, inputs)
    assert_same_step(got, train_step(plain, inputs))
    assert float(got.loss) != float(train_step(wrapped, batch()).loss)


def test_a_row_all_ignored() -> None:
    plain, wrapped = models()
    inputs = batch()
    inputs["labels"][0] = -100
    assert_same_step(train_step(wrapped, inputs), train_step(plain, inputs))


def with_all_ignored(**more: Any) -> dict[str, Any]:
    """A batch without a label."""
    return batch() | {"labels": torch.full((2, 23), -100)} | more


def test_all_ignored_among_counted_items() -> None:
    # A micro-batch of padding alone adds nothing to its step.
    plain, wrapped = models()
    inputs = with_all_ignored(num_items_in_batch=torch.tensor(5))
    for model in (plain, wrapped):
        step = train_step(model, inputs)
        assert float(step.loss) == 0
        assert not any(grad is not None and grad.any() for grad in step.grads.values())


def test_all_ignored_gives_the_nan_of_a_mean_of_nothing() -> None:
    # Its gradients are zero in torch: a run outlives a batch of prompts alone.
    plain, wrapped = models()
    for model in (plain, wrapped):
        step = train_step(model, with_all_ignored())
        assert torch.isnan(step.loss)
        wrong = [name for name, grad in step.grads.items() if grad is not None and grad.any()]
        assert not wrong, type(model)


def test_another_ignore_index() -> None:
    plain, wrapped = models()
    inputs = batch()
    inputs |= {"labels": inputs["labels"].masked_fill(inputs["labels"] == -100, -7)}
    inputs["ignore_index"] = -7
    got = train_step(wrapped, inputs)
    assert_same_step(got, train_step(plain, inputs))
    assert_same_step(got, train_step(plain, batch()))


@pytest.mark.parametrize("where", ["model.norm", "model.layers.0.mlp.up_proj", "lm_head"])
def test_nan_passes_through(where: str) -> None:
    steps = []
    for model in models():
        with torch.no_grad():
            model.get_parameter(f"{where}.weight").view(-1)[0] = float("nan")
        steps.append(train_step(model, batch()))
    expected, got = steps
    assert torch.isnan(expected.loss)
    assert torch.isnan(got.loss)
    assert _with_nan(got.grads) == _with_nan(expected.grads)


def _with_nan(grads: dict[str, Tensor | None]) -> set[str]:
    return {name for name, grad in grads.items() if grad is not None and grad.isnan().any()}


def test_a_nan_step_leaves_the_next_one_whole() -> None:
    plain, wrapped = models()
    weight = wrapped.get_parameter("model.norm.weight")
    good = weight.detach().clone()
    with torch.no_grad():
        weight[0] = float("nan")
    train_step(wrapped, batch())
    with torch.no_grad():
        weight.copy_(good)
    assert_same_step(train_step(wrapped, batch()), train_step(plain, batch()))
