"""Ranks that disagree, ask for what there is not, or die: an error on all, and nothing left
behind."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from memo.attention.masks import RangeMask
from memo.parallel.agreement import check_same_batch, check_same_settings, checksum
from memo.parallel.wire import Wire
from offload import MemoError
from tests.distributed.jobs import Case, attention, returning
from tests.distributed.ranks import run_ranks

CASE = Case(mask=RangeMask.full(31, causal=True))


def _batch_error(wire: Wire, odd_rank: int, kind: str) -> str:
    """The error of a step in which one rank was given something else."""
    batch: dict[str, Any] = {"input_ids": torch.arange(40).view(2, 20), "use_cache": False}
    batch["labels"] = batch["input_ids"].clone()
    if wire.group.rank == odd_rank:
        batch = _different(batch, kind)
    try:
        check_same_batch(batch, wire.group)
    except MemoError as error:
        return str(error)
    return ""


def _different(batch: dict[str, Any], kind: str) -> dict[str, Any]:
    ids = batch["input_ids"].clone()
    if kind == "element":
        ids[1, 19] += 1
    if kind == "order":
        ids[0, 3], ids[0, 4] = ids[0, 4].clone(), ids[0, 3].clone()
    if kind == "shape":
        ids = ids[:, :-1]
    if kind == "missing":
        return {name: value for name, value in batch.items() if name != "input_ids"}
    if kind == "dtype":
        ids = ids.int()
    return {**batch, "input_ids": ids}


@pytest.mark.parametrize("kind", ["element", "order", "shape", "missing", "dtype"])
def test_a_batch_that_differs_is_refused_on_every_rank(kind: str, tmp_path: Path) -> None:
    errors = run_ranks(_batch_error, 4, tmp_path, 2, kind)
    assert all("input_ids is not the same on all 4 ranks" in error for error in errors), errors


def test_one_batch_for_all_is_accepted(tmp_path: Path) -> None:
    assert run_ranks(_batch_error, 4, tmp_path, 99, "element") == [""] * 4


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64, torch.complex64]
)
def test_a_checksum_sees_every_element(dtype: torch.dtype) -> None:
    tensor = (torch.arange(12).view(3, 4) % 2).to(dtype)
    sums = {checksum(tensor)}
    for index in range(12):
        other = tensor.clone()
        other.view(-1)[index] = 1 - index % 2
        sums.add(checksum(other))
    assert len(sums) == 13
    assert checksum(tensor.T.contiguous().T) == checksum(tensor)
    assert isinstance(checksum(Tensor()), int)


def _settings_error(wire: Wire) -> str:
    try:
        check_same_settings({"tile_tokens": 256 << (wire.group.rank == 1)}, wire.group)
    except MemoError as error:
        return str(error)
    return ""


def test_ranks_that_disagree_on_tiles_are_told_what_each_has(tmp_path: Path) -> None:
    for error in run_ranks(_settings_error, 2, tmp_path):
        assert "disagree on tile_tokens: 256, 512 on ranks 0 to 1" in error


def _attention_error(wire: Wire, case: Case) -> str:
    try:
        attention(wire, case)
    except (MemoError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (replace(CASE, degree=1, dropout=0.1), "attention dropout of 0.1"),
        (replace(CASE, degree=3), "heads_degree is 3: it takes a divisor of 2 ranks"),
        (replace(CASE, heads=5), "5 query heads on 2 kv heads"),
    ],
)
def test_what_cannot_be_done_is_refused_on_every_rank(
    case: Case, message: str, tmp_path: Path
) -> None:
    assert all(message in error for error in run_ranks(_attention_error, 2, tmp_path, case))


def _one_dies(wire: Wire, case: Case) -> None:
    if wire.group.rank == 1:
        os._exit(3)
    attention(wire, case)


def test_a_rank_that_dies_ends_the_others_with_an_error(tmp_path: Path) -> None:
    start_s = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank \d: |ranks ended with"):
        run_ranks(_one_dies, 4, tmp_path, CASE)
    assert time.monotonic() - start_s < 30


def _hangs(wire: Wire) -> None:
    time.sleep(600)


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="2 ranks were not done in time"):
        run_ranks(_hangs, 2, tmp_path, limit_s=1.0)
    assert run_ranks(returning, 2, tmp_path, "x") == [(0, "x"), (1, "x")]
    assert not active_children()
    servers = psutil.Process().children()
    assert not [child for server in servers for child in server.children(recursive=True)]
