"""Frozen parameters: gradients of all others as in the unwrapped model, and None where it has
None.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import memo
from tests.behaviour.common import batch, held_bytes, models
from tests.families.harness import assert_same_step, train_step

PARTS = ("layers.0.", "layers.1.", "layers.", "embed_tokens", "lm_head", "mlp", "self_attn", "norm")


def assert_equal_when_frozen(
    frozen: Callable[[str], bool], placement: str, name: str = "llama"
) -> None:
    """Freeze what `frozen` says of a parameter's name, in both; compare a step."""
    plain, wrapped = models(name, placement=placement)
    for model in (plain, wrapped):
        for param_name, param in model.named_parameters():
            param.requires_grad_(not frozen(param_name))
    got, expected = train_step(wrapped, batch()), train_step(plain, batch())
    assert_same_step(got, expected)
    given = [{n for n, g in step.grads.items() if g is not None} for step in (got, expected)]
    assert given[0] == given[1]
    assert given[0]
    assert held_bytes(wrapped) == 0


@pytest.mark.parametrize("placement", ["recompute", "keep"])
@pytest.mark.parametrize("part", PARTS)
def test_frozen(part: str, placement: str) -> None:
    assert_equal_when_frozen(lambda name: part in name, placement)


@pytest.mark.parametrize("placement", ["recompute", "keep"])
@pytest.mark.parametrize(
    "part", ["norm", "layers.0.mlp.up_proj", "layers.0.self_attn.k_proj", "lm_head", "embed_tokens"]
)
def test_frozen_but(part: str, placement: str) -> None:
    assert_equal_when_frozen(lambda name: part not in name, placement)


@pytest.mark.parametrize("part", ["attn.c_attn.bias", "ln_", "wpe"])
def test_frozen_but_in_gpt2(part: str) -> None:
    assert_equal_when_frozen(lambda name: part not in name, "recompute", "gpt2")


@pytest.mark.parametrize("placement", ["recompute", "keep"])
def test_frozen_experts_or_routers(placement: str) -> None:
    assert_equal_when_frozen(lambda name: "experts" in name, placement, "mixtral")
    assert_equal_when_frozen(lambda name: "mlp.gate" in name, placement, "mixtral")


def test_all_frozen_gives_a_loss_without_gradient_and_keeps_nothing() -> None:
    plain, wrapped = models(placement="keep")
    plain.requires_grad_(False)
    wrapped.requires_grad_(False)
    loss = wrapped(**batch()).loss
    assert not loss.requires_grad
    assert abs(float(loss) - float(plain(**batch()).loss)) < 1e-5
    assert held_bytes(wrapped) == 0
    assert memo.report(wrapped).kinds[0].calls == 0


def test_freezing_between_steps() -> None:
    plain, wrapped = models()
    for frozen in (False, True, False):
        for model in (plain, wrapped):
            model.get_submodule("model.layers.0").requires_grad_(not frozen)
        assert_same_step(train_step(wrapped, batch()), train_step(plain, batch()))
