"""Invariant 2 in float32: loss and every gradient are the unwrapped model's, whatever the tile.

Scope: full sequences in a batch. Padding and packing have files of their own.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from memo import layers
from tests.families.catalogue import FAMILIES, ROUTING_FAMILIES, Family, family_named
from tests.families.harness import (
    FLOOR,
    assert_same_step,
    pair,
    random_batch,
    random_ids,
    train_step,
)

TOKENS = 23

by_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@by_family
@pytest.mark.parametrize("tile_tokens", [1, 5, 64])
def test_same_loss_and_gradients(family: Family, tile_tokens: int) -> None:
    plain, wrapped = pair(family, tile_tokens=tile_tokens)
    batch = random_batch(2, TOKENS)
    assert_same_step(train_step(wrapped, batch), train_step(plain, batch))


@pytest.mark.parametrize("is_told", [True, False])
def test_positions_that_a_layer_counts_itself(
    is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They matter from more tokens on than the self-check has; untold, it sees it all the same."""
    family = family_named("llama4_text")
    sizes = {**family.sizes, "attn_temperature_tuning": True, "floor_scale": 70}
    family = replace(family, sizes=sizes, modes=("tiled", "tiled" if is_told else "whole"))
    if not is_told:
        monkeypatch.setattr(layers, "positions_argument", lambda _: None)
    plain, wrapped = pair(family, tile_tokens=5)
    batch = random_batch(2, 100)
    assert_same_step(train_step(wrapped, batch), train_step(plain, batch))


@by_family
def test_sequences_shorter_than_a_tile(family: Family) -> None:
    plain, wrapped = pair(family, tile_tokens=8)
    # Where no query sees more than two keys, gradients of q and k are small differences of large
    # numbers.
    for batch, floor in ((random_batch(1, 2), 1.0), (random_batch(3, 7), FLOOR)):
        got, expected = train_step(wrapped, batch), train_step(plain, batch)
        assert_same_step(got, expected, floor=floor)


@by_family
def test_a_single_token(family: Family) -> None:
    # Labels of a sequence of one token are shifted out, and the mean of no losses is NaN: so the
    # loss is made of logits here. Gradients of q and k are zero but for rounding.
    plain, wrapped = pair(family, tile_tokens=5)
    batch = {"input_ids": random_ids(2, 1)}
    got, expected = (
        train_step(model, batch, lambda out: out.logits.square().mean())
        for model in (wrapped, plain)
    )
    assert_same_step(got, expected, floor=1.0)


@by_family
def test_a_single_token_with_labels_gives_the_same_nan(family: Family) -> None:
    _, wrapped = pair(family, tile_tokens=5)
    ids = random_ids(2, 1)
    assert torch.isnan(wrapped(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("family", ROUTING_FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("tile_tokens", [1, 5, 64])
def test_router_losses(family: Family, tile_tokens: int) -> None:
    plain, wrapped = pair(family, tile_tokens=tile_tokens)
    batch = random_batch(2, TOKENS) | {"output_router_logits": True}
    got, expected = train_step(wrapped, batch), train_step(plain, batch)
    assert_same_step(got, expected)
    without = train_step(plain, random_batch(2, TOKENS))
    assert abs(float(without.loss) - float(expected.loss)) > 1e-3, "the router loss counts nothing"


@pytest.mark.parametrize("family", ROUTING_FAMILIES, ids=lambda family: family.name)
def test_router_losses_with_padding(family: Family) -> None:
    plain, wrapped = pair(family, tile_tokens=5)
    batch = random_batch(2, TOKENS) | {"output_router_logits": True}
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 17:] = 0
    batch |= {"attention_mask": mask, "labels": batch["labels"].masked_fill(mask == 0, -100)}
    assert_same_step(train_step(wrapped, batch), train_step(plain, batch))
