"""Models of several families over ranks, against the unwrapped model in one process."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.models import family_step, family_steps, frozen_but, stored_steps
from tests.distributed.ranks import run_ranks
from tests.families.catalogue import FAMILIES, ROUTING_FAMILIES, TILED_FAMILIES, Family
from tests.families.harness import (
    Grads,
    Step,
    assert_equal_grads,
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

DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
    "original_max_position_embeddings": 80,
}
"""Both change beyond so many tokens, which the first ranks' shares do not reach."""


@pytest.mark.parametrize(("name", "ranks"), [*product(NAMES, (2, 8)), ("llama", 4)])
def test_a_step_is_that_of_one_process(name: str, ranks: int, tmp_path: Path) -> None:
    batch = random_batch(2, TOKENS)
    batch["labels"][:, :29] = -100  # the first ranks have no label at all
    _check(BY_NAME[name], ranks, batch, train_step(build(BY_NAME[name]), batch), tmp_path)


@pytest.mark.parametrize("tile_tokens", [1, 3, 7, 64])
def test_tiles_of_any_size(tile_tokens: int, tmp_path: Path) -> None:
    # Shares are of 7 and of 6 tokens: a tile can be one rank's whole share and not another's.
    batch, family = random_batch(2, TOKENS), BY_NAME["llama"]
    expected = train_step(build(family), batch)
    for step in run_ranks(family_step, 8, tmp_path, family, batch, tile_tokens):
        assert_same_step(step, expected)


@pytest.mark.parametrize("trained", ["mlp", "lm_head", "o_proj"])
def test_layers_whose_attention_takes_no_gradient(trained: str, tmp_path: Path) -> None:
    # Ranks have three tiles or two, and those with two take part in the others' third exchange.
    batch, family = random_batch(2, TOKENS), BY_NAME["llama"]
    expected = train_step(frozen_but(trained, build(family)), batch)
    for step in run_ranks(family_step, 8, tmp_path, family, batch, 3, trained):
        assert_same_step(step, expected)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_what_is_stored_for_backward_changes_nothing(name: str, tmp_path: Path) -> None:
    batch = random_batch(2, TOKENS)
    expected = train_step(build(BY_NAME[name]), batch)
    for steps in run_ranks(stored_steps, 4, tmp_path, BY_NAME[name], batch):
        for step in steps:
            assert_same_step(step, expected)
            assert_equal_grads(step.grads, steps[0].grads)


REST = [family for family in TILED_FAMILIES if family.name not in NAMES]


@pytest.mark.parametrize("first", range(0, len(REST), 8))
def test_all_other_families_that_are_tiled(first: int, tmp_path: Path) -> None:
    batch = random_batch(2, TOKENS)
    asked = [(family, batch) for family in REST[first : first + 8]]
    _check_several(asked, 2, tmp_path)


def test_router_losses_are_of_all_tokens(tmp_path: Path) -> None:
    batch = random_batch(2, TOKENS) | {"output_router_logits": True}
    padding = torch.ones(2, TOKENS, dtype=torch.int64)
    padding[0, :11] = padding[1, 31:] = 0
    labels = batch["labels"].masked_fill(padding == 0, -100)
    labels[0, 11] = -100  # nobody's label: the token before it is padding
    padded = batch | {"attention_mask": padding, "labels": labels}
    families = [family for family in ROUTING_FAMILIES if family.is_tiled]
    _check_several([(f, b) for f in families for b in (batch, padded)], 2, tmp_path)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize(("name", "rope"), [("llama", DYNAMIC), ("phi3", LONG)])
def test_rotary_tables_that_follow_the_length(
    name: str, rope: dict[str, Any], ranks: int, tmp_path: Path
) -> None:
    family = BY_NAME[name]
    sizes = {**family.sizes, "rope_parameters": rope, "max_position_embeddings": 80}
    grown = replace(family, sizes={**sizes, "original_max_position_embeddings": 80})
    batch = random_batch(2, 2 * TOKENS + 1)
    expected = train_step(build(grown), batch)
    assert abs(float(expected.loss - train_step(build(family), batch).loss)) > 1e-4
    _check(grown, ranks, batch, expected, tmp_path)


def test_positions_that_a_layer_counts_itself(tmp_path: Path) -> None:
    family = BY_NAME["llama4_text"]
    sizes = {**family.sizes, "attn_temperature_tuning": True, "floor_scale": 11}
    counting = replace(family, sizes=sizes)
    batch = random_batch(2, TOKENS)
    expected = train_step(build(counting), batch)
    assert abs(float(expected.loss - train_step(build(family), batch).loss)) > 1e-4
    _check(counting, 4, batch, expected, tmp_path)


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


def _check_several(asked: list[tuple[Family, dict[str, Any]]], ranks: int, folder: Path) -> None:
    by_rank: list[list[Step]] = run_ranks(family_steps, ranks, folder, asked, 5)
    for index, (family, batch) in enumerate(asked):
        expected = train_step(build(family), batch)
        for steps in by_rank:
            assert torch.equal(steps[index].loss, by_rank[0][index].loss), family.name
            assert_same_step(steps[index], expected)


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
