"""Packed documents attend only within themselves: each document run alone is the judge.

Scope: families all of whose layers are tiled, `position_ids` that restart, with and without a 2-D
mask.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.families.catalogue import TILED_FAMILIES, Family
from tests.families.harness import Grads, Step, assert_same_step, pair, random_ids, train_step

DOCUMENTS = ((11, 9, 3), (1, 17, 5))
"""Tokens of the documents of each row: no tile divides them, and one is a single token."""

TOKENS = 23


def packed_batch(*, with_mask: bool) -> dict[str, Any]:
    """Two rows of documents; a document's first token is nobody's label."""
    ids = random_ids(len(DOCUMENTS), TOKENS)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in DOCUMENTS])
    batch = {
        "input_ids": ids,
        "position_ids": positions,
        "labels": ids.masked_fill(positions == 0, -100),
    }
    return batch | ({"attention_mask": torch.ones_like(ids)} if with_mask else {})


def documents_of(batch: dict[str, Any]) -> list[Tensor]:
    """Token ids of each document, [1, tokens]."""
    rows = zip(batch["input_ids"], DOCUMENTS, strict=True)
    return [part[None] for ids, lengths in rows for part in ids.split(list(lengths))]


def summed(steps: list[Step]) -> Step:
    """The sum of losses and of gradients."""
    grads: Grads = {}
    for step in steps:
        for name, grad in step.grads.items():
            before = grads.get(name)
            grads[name] = grad if before is None else before if grad is None else before + grad
    return Step(torch.stack([step.loss for step in steps]).sum(), grads)


@pytest.mark.parametrize("family", TILED_FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("with_mask", [False, True])
def test_equals_each_document_alone(family: Family, with_mask: bool) -> None:
    plain, wrapped = pair(family, tile_tokens=5)
    batch = packed_batch(with_mask=with_mask)
    count = int((batch["labels"] != -100).sum())
    got = train_step(wrapped, batch, lambda out: out.loss * count)
    alone = [_alone(plain, ids) for ids in documents_of(batch) if ids.shape[1] > 1]
    assert_same_step(got, summed(alone))


def _alone(plain: PreTrainedModel, ids: Tensor) -> Step:
    """The step of one document, its loss a sum over tokens."""
    return train_step(
        plain, {"input_ids": ids, "labels": ids}, lambda out: out.loss * (ids.shape[1] - 1)
    )
