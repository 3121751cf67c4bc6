"""Generation: the same tokens before, while and after a model is wrapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import memo
from tests.behaviour.common import TILE_TOKENS, batch, plain_model
from tests.families.catalogue import family_named
from tests.families.harness import random_ids, train_step, wrap_family

TILED = ("llama", "mistral", "gpt2", "gemma3_text", "cohere2", "mixtral", "gpt_oss", "llama4_text")


def generate(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """Twelve more tokens, [batch, tokens]."""
    model.generation_config.eos_token_id = None  # all twelve, whatever they are
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0} | options
    tokens: Tensor = model.generate(ids, **settings)  # type: ignore[operator]
    assert tokens.shape[1] == ids.shape[1] + 12
    return tokens


@pytest.mark.parametrize("name", [*TILED, "falcon", "gpt_neo"])
def test_greedy(name: str) -> None:
    model, ids = plain_model(name).eval(), random_ids(2, 23)
    before = generate(model, ids)
    wrap_family(family_named(name), model, tile_tokens=TILE_TOKENS)
    assert torch.equal(generate(model, ids), before)
    assert torch.equal(generate(memo.unwrap(model), ids), before)


@pytest.mark.parametrize(
    "options",
    [{"do_sample": True}, {"num_beams": 3}, {"use_cache": False}],
    ids=["sampled", "beams", "no cache"],
)
def test_other_ways(options: dict[str, Any]) -> None:
    model, ids = plain_model().eval(), random_ids(2, 23)
    torch.manual_seed(5)
    before = generate(model, ids, **options)
    memo.wrap(model, tile_tokens=TILE_TOKENS)
    torch.manual_seed(5)
    assert torch.equal(generate(model, ids, **options), before)


def test_from_left_padded_prompts() -> None:
    model, ids = plain_model().eval(), random_ids(2, 23)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    before = generate(model, ids, attention_mask=mask)
    memo.wrap(model, tile_tokens=TILE_TOKENS)
    assert torch.equal(generate(model, ids, attention_mask=mask), before)


def test_in_training_mode_between_steps() -> None:
    model, ids = plain_model(), random_ids(2, 23)
    before = generate(model, ids)
    memo.wrap(model, tile_tokens=TILE_TOKENS)
    first = train_step(model, batch())
    assert torch.equal(generate(model, ids), before)
    assert float(train_step(model, batch()).loss) == float(first.loss)
