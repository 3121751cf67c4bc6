"""Ragged batches, padded on the right or on the left, against the unwrapped model.

Scope: 2-D masks without packed documents.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.families.catalogue import FAMILIES, Family
from tests.families.harness import assert_same_step, pair, random_ids, train_step

TOKENS = 23
LENGTHS = (23, 14, 2)

by_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


by_seeing_family = pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if not family.blind_mean],
    ids=lambda family: family.name,
)


def padded(side: str) -> dict[str, Any]:
    """A batch of rows of `LENGTHS`, labels -100 at padding."""
    ids = random_ids(len(LENGTHS), TOKENS)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, slice(length) if side == "right" else slice(TOKENS - length, None)] = 1
    ids = ids.masked_fill(mask == 0, 0)
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@by_family
def test_padded_on_the_right(family: Family) -> None:
    plain, wrapped = pair(family, tile_tokens=5)
    batch = padded("right")
    assert_same_step(train_step(wrapped, batch), train_step(plain, batch))


@by_seeing_family
def test_padded_on_the_left(family: Family) -> None:
    # The first real token's label counts too: it is predicted by padding, which sees nothing.
    plain, wrapped = pair(family, tile_tokens=5)
    batch = padded("left")
    assert_same_step(train_step(wrapped, batch), train_step(plain, batch))


@by_family
def test_padded_on_the_left_where_padding_predicts_nothing(family: Family) -> None:
    plain, wrapped = pair(family, tile_tokens=5)
    batch = padded("left")
    first = batch["attention_mask"].argmax(-1)
    batch["labels"][torch.arange(len(LENGTHS)), first] = -100
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    if "position_ids" not in plain.forward.__code__.co_varnames:
        del batch["position_ids"]
    assert_same_step(train_step(wrapped, batch), train_step(plain, batch))


@by_seeing_family
def test_padded_on_the_right_with_labels_left_in(family: Family) -> None:
    plain, wrapped = pair(family, tile_tokens=5)
    batch = padded("right")
    batch["labels"] = batch["input_ids"]
    assert_same_step(train_step(wrapped, batch), train_step(plain, batch))
