"""Ranks that were alike in the first call and are not in a later one are told so, and go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from memo.parallel import agreement
from memo.parallel.agreement import check_same_call, checksum
from memo.parallel.wire import Transport, Wire
from offload import MemoError
from tests.distributed.calls import TOKENS, Asked, wrapped
from tests.distributed.ranks import run_ranks
from tests.families.harness import random_batch

KINDS = {
    "labels": "labels is not the same on all 3 ranks",
    "tokens": "input_ids, labels are not the same",
    "rows": "input_ids, labels are not the same",
    "missing": "labels is not the same",
    "dtype": "input_ids is not the same",
    "hidden states": "output_hidden_states is not the same",
    "items": "num_items_in_batch is not the same",
    "attentions": "output_attentions is not the same",  # which one rank alone would refuse
    "mask": "attention_mask is not the same",
    "training": "disagree on training: True, False, True",
}


def _batch(kind: str) -> dict[str, Any]:
    """A batch as rank 1 is given it; of no kind, as all are."""
    batch = random_batch(1 if kind == "rows" else 2, TOKENS - (kind == "tokens"))
    batch |= {"num_items_in_batch": 7, "output_hidden_states": kind == "hidden states"}
    match kind:
        case "labels":
            batch["labels"][1, 9] += 1
        case "missing":
            del batch["labels"]
        case "dtype":
            batch["input_ids"] = batch["input_ids"].int()
        case "items":
            batch["num_items_in_batch"] = 8
        case "attentions":
            batch["output_attentions"] = True
        case "mask":
            batch["attention_mask"] = torch.ones(2, 1, TOKENS, TOKENS)
    return batch


def _errors(wire: Wire) -> tuple[dict[str, str], set[float]]:
    """What each kind of difference is answered with, and the losses of all calls that agree."""
    model, odd = wrapped(Asked(), wire.group.size), wire.group.rank == 1
    errors, losses = {}, set()
    for kind in KINDS:
        losses.add(float(model(**_batch("")).loss.detach()))
        model.train(not (odd and kind == "training"))
        try:
            model(**_batch(kind if odd else ""))
        except MemoError as error:
            errors[kind] = str(error)
        model.train()
    return errors, losses


def test_differences_after_the_first_call_are_refused_on_every_rank(tmp_path: Path) -> None:
    start_s = time.monotonic()
    for errors, losses in run_ranks(_errors, 3, tmp_path):
        assert len(losses) == 1
        for kind, message in KINDS.items():
            assert message in errors.get(kind, ""), (kind, errors)
    assert time.monotonic() - start_s < 60


def _sent_bytes(wire: Wire, vectors: torch.Tensor) -> tuple[int, int]:
    arguments = {"inputs_embeds": vectors, "labels": torch.arange(5), "use_cache": False}
    check_same_call(arguments, {"training": True}, wire, torch.device("cpu"))
    count = wire.counts[Transport.GATHER]
    return count.calls, count.sent_bytes


def test_an_agreement_is_one_gather_of_sixteen_bytes(tmp_path: Path) -> None:
    found = run_ranks(_sent_bytes, 4, tmp_path, torch.ones(1, 5, 3))
    assert found == [(1, 3 * 16)] * 4


@pytest.mark.parametrize("elements", [997, 4096])
def test_a_checksum_is_of_all_chunks(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(9973).view(-1, 1)
    whole = checksum(tensor)
    monkeypatch.setattr(agreement, "_CHUNK", elements)
    assert checksum(tensor) == whole
