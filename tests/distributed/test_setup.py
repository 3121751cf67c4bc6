"""Which models can share a sequence: what stands before their layers is told on a few tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memo.attention.interface import register
from memo.kinds import find_layers
from memo.parallel.setup import check_entrance
from offload import MemoError
from tests.families.catalogue import TILED_FAMILIES, Family, family_named
from tests.families.harness import build

COUNTS_BY_PADDING = {"opt"}
"""transformers' code of these makes positions of the attention mask."""


def _check(model: PreTrainedModel) -> bool:
    register()
    samples: dict[str, nn.Module] = {}
    for layer in find_layers(model):
        samples.setdefault(layer.kind, layer.module)
    return check_entrance(model, samples)


@pytest.mark.parametrize("family", TILED_FAMILIES, ids=lambda family: family.name)
def test_families_take_positions(family: Family) -> None:
    model = build(family)
    state = torch.random.get_rng_state()
    assert _check(model) == (family.name in COUNTS_BY_PADDING)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training


def test_a_table_that_counts_from_its_first_token_is_refused() -> None:
    model = build(family_named("llama"))
    rotary = model.get_submodule("model.rotary_emb")

    def from_zero(x: Tensor, position_ids: Tensor) -> Any:
        own = torch.arange(position_ids.shape[-1]).unsqueeze(0)
        return type(rotary).forward(rotary, x, own)

    rotary.__dict__["forward"] = from_zero
    with pytest.raises(MemoError, match=r"something else \(argument\) on a share"):
        _check(model)


class _Neighbours(nn.Embedding):
    """Adds the token before to each."""

    def forward(self, input: Tensor) -> Tensor:
        own = super().forward(input)
        return own + own.roll(1, 1)


def test_tokens_that_mix_before_the_layers_are_refused() -> None:
    model = build(family_named("llama"))
    model.get_input_embeddings().__class__ = _Neighbours
    with pytest.raises(MemoError, match=r"something else \(hidden states\) on a share"):
        _check(model)


def test_a_model_without_positions_is_refused() -> None:
    model = build(family_named("llama"))

    class Other(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            return super().forward(input_ids=input_ids, use_cache=use_cache)

    model.__class__ = Other
    with pytest.raises(MemoError, match="it takes no position_ids"):
        _check(model)
