"""The model's own dropouts, attention's included: no placement changes a bit, and gradients are
derivatives.

Scope: GPT-2, which has a dropout on embeddings, on attention weights, and after both blocks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import memo
from tests.behaviour.common import (
    PLACEMENTS,
    TILE_TOKENS,
    assert_gradient_is_derivative,
    batch,
    models,
    only_ids,
    plain_model,
    relative_error,
)
from tests.families.catalogue import family_named
from tests.families.harness import Step, assert_equal_grads, train_step

DROPOUTS = ("attn_pdrop", "resid_pdrop", "embd_pdrop")


def gpt2(*dropouts: str, placement: Any = "recompute") -> PreTrainedModel:
    """A wrapped GPT-2, a tenth dropped at each of these places; its weights the same each time."""
    config = family_named("gpt2").config()
    for name in dropouts:
        setattr(config, name, 0.1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.load_state_dict(plain_model("gpt2").state_dict())
    model.train()
    return memo.wrap(model, tile_tokens=TILE_TOKENS, placement=placement)


def step_of(model: PreTrainedModel, seed: int = 1) -> Step:
    """A training step whose random numbers start at `seed`."""
    torch.manual_seed(seed)
    return train_step(model, batch())


@pytest.mark.parametrize("dropouts", [DROPOUTS, *((name,) for name in DROPOUTS)], ids=str)
def test_placement_changes_no_bit(dropouts: tuple[str, ...]) -> None:
    expected = step_of(gpt2(*dropouts))
    for placement in PLACEMENTS[1:]:
        got = step_of(gpt2(*dropouts, placement=placement))
        assert float(got.loss) == float(expected.loss)
        assert_equal_grads(got.grads, expected.grads)


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_each_dropout_drops(dropout: str) -> None:
    wrapped = gpt2(dropout)
    first, second, again = (float(step_of(wrapped, seed).loss) for seed in (1, 2, 1))
    assert first == again
    assert len({first, second, float(step_of(gpt2()).loss)}) == 3


def test_evaluation_drops_nothing() -> None:
    plain, wrapped = plain_model("gpt2").eval(), gpt2(*DROPOUTS).eval()
    with torch.no_grad():
        torch.testing.assert_close(wrapped(**batch()).loss, plain(**batch()).loss)


@pytest.mark.parametrize("placement", ["recompute", "keep"])
@pytest.mark.parametrize("only", ["", "h.0.attn.c_attn", "h.1.mlp.c_fc", "ln_1"])
def test_gradients_are_derivatives(placement: str, only: str) -> None:
    model = gpt2(*DROPOUTS, placement=placement).double()
    assert_gradient_is_derivative(model, only_ids(), only=only)


def test_a_run_without_placements_is_no_derivative_of_another_seed() -> None:
    # The judge above can tell: a step whose numbers differ from those of the differences fails.
    model = gpt2(*DROPOUTS).double()
    layer = model.get_submodule("transformer.h.0.mlp")
    runs = iter(range(10**6))

    def drop_otherwise(_: Any, __: Any, output: Tensor) -> Tensor:
        return output * (1 + 0.01 * next(runs))

    layer.register_forward_hook(drop_otherwise)
    with pytest.raises(AssertionError, match="is not"):
        assert_gradient_is_derivative(model, only_ids())


def first_layer_of_equal_tokens(model: PreTrainedModel) -> tuple[Tensor, ...]:
    """What the first layer makes of one token again and again, at no position, tile by tile."""
    with torch.no_grad():
        model.get_parameter("transformer.wpe.weight").zero_()
    ids = torch.full((1, 4 * TILE_TOKENS), 7)
    hidden: Tensor = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
    tiles: tuple[Tensor, ...] = torch.split(hidden, TILE_TOKENS, dim=1)
    return tiles


def test_no_two_tiles_drop_the_same() -> None:
    # Attention gives such tokens the same, so what differs between two tiles are dropped values.
    first, *others = first_layer_of_equal_tokens(gpt2("resid_pdrop"))
    assert all(relative_error(other, first) > 0.01 for other in others)
    first, *others = first_layer_of_equal_tokens(gpt2())
    assert all(relative_error(other, first) < 1e-5 for other in others)


def test_without_dropout_no_random_number_is_drawn() -> None:
    states = []
    for model in models():
        torch.manual_seed(5)
        train_step(model, batch())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_step_with_dropout_moves_the_callers_numbers_on() -> None:
    wrapped = gpt2("resid_pdrop")
    torch.manual_seed(5)
    losses = {float(train_step(wrapped, batch()).loss) for _ in range(3)}
    assert len(losses) == 3
