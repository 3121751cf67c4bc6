"""Attention over ranks, forward and backward, against attention written out in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memo.attention.masks import RangeMask, Row
from memo.parallel.contracts import Stored
from offload import Tier
from tests.distributed.jobs import Case, differentiable, several
from tests.distributed.ranks import run_ranks
from tests.distributed.reference import assert_close, check, written_out

TOKENS = 61
WHOLE = Row((0, TOKENS), (0,))
PACKED = Row((0, TOKENS), (0, 1, 19, 60))
MASKS = {
    "causal": RangeMask.full(TOKENS, causal=True),
    "both ways": RangeMask.full(TOKENS, causal=False),
    "packed": RangeMask(TOKENS, (PACKED,)),
    "window": RangeMask(TOKENS, (WHOLE,), window=7),
    "packed window": RangeMask(TOKENS, (PACKED,), window=11),
    "window both ways": RangeMask(TOKENS, (WHOLE,), causal=False, window=9),
    "chunks": RangeMask(TOKENS, (PACKED,), chunk=13),
}
ROWS = (WHOLE, Row((0, 30), (0, 17)), Row((23, TOKENS), (23, 24, 50)), Row((0, 0), (0,)))
PADDED = {
    "padded": RangeMask(TOKENS, ROWS),
    "padded window": RangeMask(TOKENS, ROWS, window=7),
}
RANKS = [2, 4, 8]


def _run(cases: list[Case], ranks: int, folder: Path) -> None:
    outcomes = run_ranks(several, ranks, folder, cases)
    for index, case in enumerate(cases):
        check(case, [of_rank[index] for of_rank in outcomes])


def _masks(case: Case) -> list[Case]:
    return [
        *(replace(case, mask=mask) for mask in MASKS.values()),
        *(replace(case, mask=mask, batch=4) for mask in PADDED.values()),
    ]


CASE = Case(mask=MASKS["causal"], heads=9, kv_heads=3)


@pytest.mark.parametrize("ranks", RANKS)
def test_any_mask_is_attention_written_out(ranks: int, tmp_path: Path) -> None:
    _run(_masks(CASE), ranks, tmp_path)


@pytest.mark.parametrize(("ranks", "heads", "kv_heads"), [(4, 2, 1), (8, 4, 2), (8, 3, 3)])
def test_any_mask_with_more_ranks_than_heads(
    ranks: int, heads: int, kv_heads: int, tmp_path: Path
) -> None:
    _run(_masks(replace(CASE, heads=heads, kv_heads=kv_heads)), ranks, tmp_path)


@pytest.mark.parametrize(
    ("ranks", "degrees"), [(2, (1,)), (4, (1, 2, 4)), (6, (2, 3)), (8, (2, 4))]
)
def test_any_degree_that_is_asked_for(ranks: int, degrees: list[int], tmp_path: Path) -> None:
    windows = [CASE, replace(CASE, mask=MASKS["window"])]
    cases = [replace(case, degree=degree) for case in windows for degree in degrees]
    _run(cases, ranks, tmp_path)


@pytest.mark.parametrize("ranks", RANKS)
def test_any_number_of_tokens(ranks: int, tmp_path: Path) -> None:
    cases = []
    for tokens in (1, 5, 97):
        case = replace(CASE, mask=RangeMask.full(tokens, causal=True))
        cases += [case, replace(case, unit_tokens=8), replace(case, degree=1)]
        cases.append(replace(case, degree=2, unit_tokens=8))
    _run(cases, ranks, tmp_path)


@pytest.mark.parametrize("ranks", RANKS)
def test_any_heads(ranks: int, tmp_path: Path) -> None:
    cases = []
    for heads, kv_heads in ((8, 8), (16, 2), (12, 4), (15, 5), (14, 1)):
        case = replace(CASE, heads=heads, kv_heads=kv_heads, batch=2)
        cases += [case, replace(case, mask=MASKS["packed"])]
    _run(cases, ranks, tmp_path)


@pytest.mark.parametrize("ranks", RANKS)
def test_float32_keeps_five_digits(ranks: int, tmp_path: Path) -> None:
    case = replace(CASE, dtype=torch.float32)
    ring = replace(case, degree=1)
    window = MASKS["packed window"]
    windows = [replace(each, mask=window) for each in (case, ring)]
    _run([case, ring, *windows], ranks, tmp_path)


def _degrees(cases: list[Case]) -> list[Case]:
    return [replace(case, degree=degree) for case in cases for degree in (None, 1, 2)]


@pytest.mark.parametrize("ranks", RANKS)
def test_soft_capping_sinks_and_v_of_its_own_size(ranks: int, tmp_path: Path) -> None:
    both = replace(CASE, sinks=True, softcap=1.5, mask=PADDED["padded window"], batch=4)
    own_sizes = [replace(CASE, v_size=v_size) for v_size in (5, 11)]
    one = [replace(CASE, softcap=1.5), replace(CASE, sinks=True)]
    _run(_degrees([both, *own_sizes, *one]), ranks, tmp_path)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.HOST])
def test_what_is_stored_changes_nothing(tier: Tier, ranks: int, tmp_path: Path) -> None:
    case = replace(CASE, tier=tier, batch=2)
    cases = [
        replace(case, stored=stored, is_own=is_own) for stored in Stored for is_own in (False, True)
    ]
    _run(_degrees(cases), ranks, tmp_path)


@pytest.mark.parametrize("ranks", RANKS)
def test_an_exchange_tile_by_tile_is_the_same(ranks: int, tmp_path: Path) -> None:
    cases = []
    for tile_tokens in (1, 5, 64):
        case = replace(CASE, tile_tokens=tile_tokens, batch=2)
        cases += [replace(case, sinks=True, unit_tokens=4)]
        cases += [replace(case, stored=stored) for stored in Stored]
    _run([*cases, *_degrees(cases[:1])], ranks, tmp_path)


@pytest.mark.parametrize("degree", [None, 1])
def test_a_layer_that_runs_whole_differentiates_it(degree: int | None, tmp_path: Path) -> None:
    case = replace(CASE, degree=degree, mask=MASKS["packed"])
    results = run_ranks(differentiable, 4, tmp_path, case)
    o, grads, _ = written_out(case)
    assert_close(torch.cat([of_rank[0] for of_rank in results], dim=1), o, 1e-11)
    for index, want in enumerate(grads, start=1):
        assert_close(torch.cat([of_rank[index] for of_rank in results], dim=2), want, 1e-11)
