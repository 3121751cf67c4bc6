"""Heads: tied to the embeddings, with a bias, frozen, resized, and replaced by an adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import memo
from tests.behaviour.common import TILE_TOKENS, batch, models, relative_error, set_head_tile
from tests.families.catalogue import Family, family_named
from tests.families.harness import TOLERANCE, assert_same_step, pair, train_step


@pytest.fixture(autouse=True)
def head_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head in tiles of 7 tokens; the families' tests run it all at once."""
    set_head_tile(monkeypatch, 7)


def tied(name: str) -> Family:
    """The family with its head tied to the embeddings."""
    family = family_named(name)
    return replace(family, sizes={**family.sizes, "tie_word_embeddings": True})


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The head, which is a linear in all of them."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head


def assert_same_and_tiled(plain: PreTrainedModel, wrapped: PreTrainedModel) -> None:
    """A step is equal and nothing was noted: no logits were made whole."""
    assert_same_step(train_step(wrapped, batch()), train_step(plain, batch()))
    assert not memo.report(wrapped).notes


@pytest.mark.parametrize("placement", ["recompute", "keep"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "qwen2", "cohere"])
def test_tied(name: str, placement: str) -> None:
    plain, wrapped = pair(tied(name), tile_tokens=TILE_TOKENS, placement=placement)
    for model in (plain, wrapped):
        assert head_of(model).weight is model.get_input_embeddings().weight
    assert_same_and_tiled(plain, wrapped)
    assert head_of(wrapped).weight is wrapped.get_input_embeddings().weight


def test_tied_and_frozen() -> None:
    plain, wrapped = pair(tied("llama"), tile_tokens=TILE_TOKENS)
    for model in (plain, wrapped):
        head_of(model).weight.requires_grad_(False)
    assert_same_and_tiled(plain, wrapped)


@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_biased(frozen: tuple[str, ...]) -> None:
    plain, wrapped = models("phi")
    assert head_of(plain).bias is not None
    for model in (plain, wrapped):
        for name in frozen:
            head_of(model).get_parameter(name).requires_grad_(False)
    assert_same_and_tiled(plain, wrapped)
    assert (head_of(wrapped).bias.requires_grad) == ("bias" not in frozen)


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2"])
def test_scaled_and_capped(name: str) -> None:
    assert_same_and_tiled(*models(name))


def test_resized_after_wrapping() -> None:
    plain, wrapped = models()
    for model in (plain, wrapped):
        torch.manual_seed(1)
        model.resize_token_embeddings(107, mean_resizing=False)
    assert head_of(wrapped).weight.shape[0] == 107
    assert_same_and_tiled(plain, wrapped)


def hooked(model: PreTrainedModel, module_name: str) -> list[Any]:
    """What the head's forward hooks, as if written in that module, are given as output."""
    seen: list[Any] = []

    def before(*_: Any) -> None:
        seen.append("before")

    def after(_: Any, __: Any, output: Any) -> None:
        seen.append(output.detach())

    for hook, register in (
        (before, head_of(model).register_forward_pre_hook),
        (after, head_of(model).register_forward_hook),
    ):
        hook.__module__ = module_name
        register(hook)
    return seen


def test_an_engines_hooks_run_once_around_the_tiles() -> None:
    # They gather and free the head's parameters.
    plain, wrapped = models()
    seen = hooked(wrapped, "torch.distributed.fsdp")
    assert_same_and_tiled(plain, wrapped)
    assert len(seen) == 2
    assert seen[0] == "before"


def test_a_users_hooks_see_logits_and_the_warning_says_so() -> None:
    plain, wrapped = models()
    seen = hooked(wrapped, "users.code")
    with pytest.warns(memo.MemoWarning, match="logits are whole"):
        got = train_step(wrapped, batch())
    assert_same_step(got, train_step(plain, batch()))
    assert len(seen) == 2
    assert relative_error(seen[1], plain(**batch()).logits) <= TOLERANCE
