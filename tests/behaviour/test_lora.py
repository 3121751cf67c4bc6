"""LoRA by PEFT: against the unwrapped adapters without dropout; with dropout, a recompute that
draws the same numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import memo
from tests.behaviour.common import (
    PLACEMENTS,
    TILE_TOKENS,
    assert_gradient_is_derivative,
    batch,
    module_step,
    only_ids,
    plain_model,
    relative_error,
)
from tests.behaviour.state import assert_restored, state_of
from tests.families.harness import TOLERANCE, assert_equal_grads, assert_same_step


def with_adapters(model: Any, *, dropout: float = 0.0) -> PeftModel:
    """The model with adapters on all of its linears, none of them zero; the same each time."""
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        lora_dropout=dropout,
        task_type="CAUSAL_LM",
        # GPT-2 keeps its weights the other way round.
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    adapted: PeftModel = get_peft_model(model, config)
    with torch.no_grad():
        for name, param in adapted.named_parameters():
            if "lora_B" in name:
                param.copy_(torch.randn_like(param) * 0.1)
    return adapted.train()


def adapted_and_wrapped(
    placement: Any = "recompute", *, name: str = "llama", dropout: float = 0.1
) -> PeftModel:
    """Adapters first, then memo."""
    adapted = with_adapters(plain_model(name), dropout=dropout)
    return memo.wrap(adapted, tile_tokens=TILE_TOKENS, placement=placement)


@pytest.mark.parametrize("placement", ["recompute", "keep"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3", "gpt2"])
def test_equals_the_unwrapped_adapters(name: str, placement: str) -> None:
    expected = module_step(with_adapters(plain_model(name)), batch())
    wrapped = adapted_and_wrapped(placement, name=name, dropout=0.0)
    got = module_step(wrapped, batch())
    assert_same_step(got, expected)
    assert {n for n, g in got.grads.items() if g is not None} == {
        n for n in got.grads if "lora_" in n
    }
    assert_same_step(module_step(memo.unwrap(wrapped), batch()), expected)


def test_unwrap_restores_the_adapted_model() -> None:
    adapted = with_adapters(plain_model())
    module_step(adapted, batch())
    state = state_of(adapted)
    memo.wrap(adapted, tile_tokens=TILE_TOKENS)
    module_step(adapted, batch())
    assert list(adapted.state_dict()) == list(with_adapters(plain_model()).state_dict())
    assert_restored(memo.unwrap(adapted), state)


def test_adapters_put_into_a_wrapped_model() -> None:
    expected = module_step(with_adapters(plain_model()), batch())
    wrapped = with_adapters(memo.wrap(plain_model(), tile_tokens=TILE_TOKENS))
    assert_same_step(module_step(wrapped, batch()), expected)
    assert memo.report(wrapped).kinds[0].calls == 2


def test_dropout_draws_the_same_under_every_placement() -> None:
    steps = []
    for placement in PLACEMENTS:
        wrapped = adapted_and_wrapped(placement)
        torch.manual_seed(11)
        steps.append(module_step(wrapped, batch()))
    for step in steps[1:]:
        assert float(step.loss) == float(steps[0].loss)
        assert_equal_grads(step.grads, steps[0].grads)


def test_dropout_drops() -> None:
    wrapped = adapted_and_wrapped()
    losses = []
    for seed in (11, 12, 11):
        torch.manual_seed(seed)
        losses.append(float(module_step(wrapped, batch()).loss))
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]
    without = float(module_step(adapted_and_wrapped(dropout=0.0), batch()).loss)
    assert losses[0] != without


# GPT-NeoX, whose norms stay in float64, where Llama's go through float32.
@pytest.mark.parametrize("placement", ["recompute", "keep"])
@pytest.mark.parametrize("only", ["", "layers.0.attention.query_key_value", "dense_4h_to_h"])
def test_gradients_under_dropout_are_derivatives(placement: str, only: str) -> None:
    wrapped = adapted_and_wrapped(placement, name="gpt_neox").double()
    assert_gradient_is_derivative(wrapped, only_ids(), only=only)


def test_merging_and_disabling_adapters() -> None:
    plain, wrapped = with_adapters(plain_model()), adapted_and_wrapped(dropout=0.0)
    with plain.disable_adapter(), wrapped.disable_adapter():
        expected, got = plain(**batch()).loss, wrapped(**batch()).loss
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=0)
    merged: list[nn.Module] = [model.merge_and_unload() for model in (plain, wrapped)]
    results = [model(**only_ids()).logits for model in merged]
    assert relative_error(results[1], results[0]) <= TOLERANCE
