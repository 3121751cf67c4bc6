"""Models of several families over ranks, against the unwrapped model in one process."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.models import family_step
from tests.distributed.ranks import run_ranks
from tests.families.catalogue import FAMILIES, Family
from tests.families.harness import (
    Grads,
    Step,
    assert_same_step,
    build,
    random_batch,
    random_ids,
    train_step,
)

TOKENS = 53
"""A prime: shares of 4 tokens leave one over."""

NAMES = ("llama", "mistral", "gemma2", "gpt2", "gpt_oss", "cohere2", "llama4_text", "deepseek_v3")
"""Among them windows, soft-capping, sinks, chunks, learnt positions, and v of a size of its own."""

BY_NAME = {family.name: family for family in FAMILIES}
DOCUMENTS = ((30, 19, 4), (1, 33, 19))


@pytest.mark.parametrize(("name", "ranks"), [*product(NAMES, (2, 8)), ("llama", 4)])
def test_a_step_is_that_of_one_process(name: str, ranks: int, tmp_path: Path) -> None:
    batch = random_batch(2, TOKENS)
    batch["labels"][:, :29] = -100  # the first ranks have no label at all
    _check(BY_NAME[name], ranks, batch, train_step(build(BY_NAME[name]), batch), tmp_path)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_padded_rows(name: str, ranks: int, tmp_path: Path) -> None:
    batch = random_batch(3, TOKENS)
    padding = torch.ones(3, TOKENS, dtype=torch.int64)
    padding[0, 31:] = padding[1, :11] = 0
    batch |= {"attention_mask": padding, "labels": batch["labels"].masked_fill(padding == 0, -100)}
    batch["labels"][1, 11] = -100  # nobody's label: the token before it is padding
    _check(BY_NAME[name], ranks, batch, train_step(build(BY_NAME[name]), batch), tmp_path)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_packed_documents(name: str, ranks: int, tmp_path: Path) -> None:
    ids = random_ids(len(DOCUMENTS), TOKENS)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in DOCUMENTS])
    labels = ids.masked_fill(positions == 0, -100)
    batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
    count = int((labels != -100).sum())
    alone = _documents_alone(BY_NAME[name], ids, count)
    _check(BY_NAME[name], ranks, batch, alone, tmp_path)


def _check(family: Family, ranks: int, batch: dict[str, Any], expected: Step, folder: Path) -> None:
    steps: list[Step] = run_ranks(family_step, ranks, folder, family, batch, 5)
    for step in steps:
        assert torch.equal(step.loss, steps[0].loss)
        assert_same_step(step, expected)


def _documents_alone(family: Family, ids: torch.Tensor, count: int) -> Step:
    """The sum over documents of steps that each runs alone, as a mean over `count` labels."""
    model, grads, losses = build(family), Grads(), []
    for row, lengths in zip(ids, DOCUMENTS, strict=True):
        for part in row.split(list(lengths)):
            if len(part) == 1:
                continue
            weight = (len(part) - 1) / count
            one = {"input_ids": part[None], "labels": part[None]}
            step = train_step(model, one)
            losses.append(step.loss * weight)
            for name, grad in step.grads.items():
                before = grads.get(name)
                scaled = None if grad is None else grad * weight
                grads[name] = scaled if before is None or scaled is None else before + scaled
    return Step(torch.stack(losses).sum(), grads)
