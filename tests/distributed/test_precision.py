"""Half precision over ranks: the bits of one process where the arithmetic is the same, and errors
no larger than its own elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memo.attention.core import AttentionCore
from memo.attention.masks import RangeMask
from offload import CoreCall, CoreEnd, TensorStore, Tier
from tests.distributed.jobs import Case, Outcome, several
from tests.distributed.ranks import run_ranks
from tests.distributed.reference import written_out

CASE = Case(
    mask=RangeMask.full(93, causal=True), heads=8, kv_heads=8, dtype=torch.bfloat16, batch=2
)
GROUPED = replace(CASE, heads=9, kv_heads=3, batch=1)
WORSE = 1.25
"""Sums in another order may round otherwise."""


def _joined(outcomes: list[Outcome]) -> list[Tensor]:
    o = torch.cat([outcome.o for outcome in outcomes], dim=1)
    grads = zip(*(outcome.grads for outcome in outcomes), strict=True)
    return [o, *(torch.cat(parts, dim=2) for parts in grads)]


def _in_one_process(case: Case) -> list[Tensor]:
    heads, _, grad_o = case.tensors()
    core = AttentionCore(TensorStore())
    call = CoreCall(heads=tuple(heads), options=case.options(case.mask))
    with torch.no_grad():
        o, state = core.forward(call, Tier.HOST)
        assert state is not None
        grads, _ = core.backward(call, CoreEnd(o=o, grad_o=grad_o, state=state))
    return [o, *grads]


@pytest.mark.parametrize("ranks", [2, 4])
def test_whole_heads_have_the_bits_of_one_process(ranks: int, tmp_path: Path) -> None:
    cases = [CASE, replace(CASE, tile_tokens=16), replace(CASE, dtype=torch.float32)]
    by_rank = run_ranks(several, ranks, tmp_path, cases)
    for index, case in enumerate(cases):
        found = _joined([of_rank[index] for of_rank in by_rank])
        for mine, want in zip(found, _in_one_process(case), strict=True):
            assert mine.dtype == case.dtype
            assert torch.equal(mine, want)


@pytest.mark.parametrize("ranks", [2, 4])
def test_replicated_heads_and_rings_are_no_less_exact(ranks: int, tmp_path: Path) -> None:
    cases = [GROUPED, replace(GROUPED, degree=1)]
    by_rank = run_ranks(several, ranks, tmp_path, cases)
    o, grads, _ = written_out(GROUPED)
    for index in range(len(cases)):
        found = _joined([of_rank[index] for of_rank in by_rank])
        tensors = zip(found, _in_one_process(GROUPED), [o, *grads], strict=True)
        for mine, single, exact in tensors:
            assert (mine - exact).norm() <= WORSE * (single - exact).norm()


def test_autocast_halves_what_is_sent(tmp_path: Path) -> None:
    wide = replace(CASE, dtype=torch.float32)
    cases = [replace(wide, autocast=True), wide]
    for autocast, whole in run_ranks(several, 2, tmp_path, cases):
        assert autocast.o.dtype == torch.bfloat16
        assert 2 * autocast.sent_bytes["all-to-all"] == whole.sent_bytes["all-to-all"]
