"""Hidden states: equal, with gradients through every one of them; the body alone; gradients of
given embeddings.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import memo
from tests.behaviour.common import (
    PLACEMENTS,
    TILE_TOKENS,
    batch,
    models,
    module_step,
    only_ids,
    plain_model,
    relative_error,
)
from tests.families.harness import TOLERANCE, assert_same_step, train_step


def of_all_states(output: Any) -> Tensor:
    """A loss to which each hidden state adds something of its own."""
    states = [state.square().mean() * (i + 1) for i, state in enumerate(output.hidden_states)]
    loss: Tensor = torch.stack(states).sum() + output.loss
    return loss


def of_last_state(output: Any) -> Tensor:
    """The mean square of the body's result."""
    loss: Tensor = output.last_hidden_state.square().mean()
    return loss


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma3_text"])
def test_values_and_gradients(name: str) -> None:
    plain, wrapped = models(name)
    inputs = batch() | {"output_hidden_states": True}
    got, expected = wrapped(**inputs).hidden_states, plain(**inputs).hidden_states
    assert len(got) == len(expected) == 3
    for ours, theirs in zip(got, expected, strict=True):
        assert relative_error(ours, theirs) <= TOLERANCE
    steps = [train_step(model, inputs, of_all_states) for model in (wrapped, plain)]
    assert_same_step(*steps)


def test_asked_for_by_the_config() -> None:
    plain, wrapped = models()
    for model in (plain, wrapped):
        model.config.output_hidden_states = True
    steps = [train_step(model, batch(), of_all_states) for model in (wrapped, plain)]
    assert_same_step(*steps)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_the_body_of_a_wrapped_model(placement: Any) -> None:
    plain, wrapped = models(placement=placement)
    bodies = (wrapped.base_model, plain.base_model)
    steps = [module_step(body, only_ids(), of_last_state) for body in bodies]
    assert_same_step(*steps)


def test_the_body_wrapped_alone() -> None:
    plain, body = plain_model().base_model, plain_model().base_model
    memo.wrap(body, tile_tokens=TILE_TOKENS)
    steps = [module_step(model, only_ids(), of_last_state) for model in (body, plain)]
    assert_same_step(*steps)
    assert memo.report(body).kinds[0].calls == 2


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_given_embeddings(name: str, frozen: bool) -> None:
    # With all of the model frozen, this is prompt tuning.
    results = []
    for model in models(name):
        embeddings = model.get_input_embeddings()(batch()["input_ids"])
        embeddings = embeddings.detach().requires_grad_()
        model.requires_grad_(not frozen)
        model(inputs_embeds=embeddings, labels=batch()["labels"]).loss.backward()
        assert frozen == all(param.grad is None for param in model.parameters())
        results.append(embeddings.grad)
    assert relative_error(results[1], results[0]) <= TOLERANCE
