"""Autocast to bf16 over float32 weights: the error of the unwrapped model under autocast is the
judge, and backward, which runs outside of autocast, finds it again.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.behaviour.common import PLACEMENTS, batch, gradients, models, only_ids, wrapped_model
from tests.families.harness import Step, assert_equal_grads, global_error, train_step

SEEDS = range(3)


def autocast_step(model: PreTrainedModel, inputs: dict[str, Any]) -> Step:
    """Forward under autocast, backward outside of it, as users are told to."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    step = Step(loss.detach(), gradients(model))
    model.zero_grad(set_to_none=True)
    return step


@pytest.mark.parametrize("placement", ["recompute", "keep"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2", "gemma3_text"])
def test_error_is_no_larger_than_the_unwrapped_models(name: str, placement: str) -> None:
    plain, wrapped = models(name, placement=placement)
    ours, theirs = 0.0, 0.0
    for seed in SEEDS:
        inputs = batch(seed=seed)
        reference = train_step(plain, inputs)
        got, expected = autocast_step(wrapped, inputs), autocast_step(plain, inputs)
        ours += global_error(got.grads, reference.grads) / len(SEEDS)
        theirs += global_error(expected.grads, reference.grads) / len(SEEDS)
        # A bf16 ulp of these losses is 3e-2.
        assert abs(float(got.loss) - float(expected.loss)) < 1e-2
    assert theirs > 1e-3, "autocast changed nothing"
    assert ours <= 1.1 * theirs


def test_gradients_are_of_the_weights_dtype() -> None:
    grads = autocast_step(wrapped_model(), batch()).grads
    assert {grad.dtype for grad in grads.values() if grad is not None} == {torch.float32}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_placement_changes_no_bit(name: str) -> None:
    expected = autocast_step(wrapped_model(name), batch())
    for placement in PLACEMENTS[1:]:
        got = autocast_step(wrapped_model(name, placement=placement), batch())
        assert float(got.loss) == float(expected.loss)
        assert_equal_grads(got.grads, expected.grads)


def test_backward_inside_autocast_is_the_same() -> None:
    wrapped = wrapped_model()
    expected = autocast_step(wrapped, batch())
    with torch.autocast("cpu", torch.bfloat16):
        got = train_step(wrapped, batch())
    assert_equal_grads(got.grads, expected.grads)


def test_logits_are_of_the_dtype_that_autocast_gives() -> None:
    plain, wrapped = models()
    with torch.autocast("cpu", torch.bfloat16):
        assert wrapped(**batch()).logits.dtype == plain(**batch()).logits.dtype == torch.bfloat16
        assert wrapped(**only_ids()).logits.dtype == torch.bfloat16


def test_evaluation_under_autocast() -> None:
    plain, wrapped = models()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, expected = wrapped.eval()(**batch()).loss, plain.eval()(**batch()).loss
    assert got.dtype == expected.dtype
    assert abs(float(got) - float(expected)) < 1e-2
