"""Bytes on the wire and in the store: counted, and held against Ulysses' formula and a plan's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memo.attention.masks import RangeMask
from memo.parallel.contracts import Stored
from memo.parallel.shares import heads_degree, share_axes, share_tokens
from memo.planning.collectives import exchange_of
from planner.contracts import Stored as PlannedStored
from tests.distributed.jobs import Case, Outcome, attention, several
from tests.distributed.ranks import run_ranks
from tests.memo.planning.common import llama

ITEM_BYTES = 8
CASE = Case(mask=RangeMask.full(64, causal=True), heads=8, kv_heads=8)
UNEVEN = replace(CASE, mask=RangeMask.full(61, causal=True), heads=9, kv_heads=3, batch=2)

IN_BACKWARD = {Stored.BEFORE: "qkvoo", Stored.OUTPUT: "qkvo", Stored.AFTER: "o"}
"""What backward exchanges on the way in: q, k, v, o and the gradient of o."""


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_an_exchange_is_ulysses(ranks: int, tmp_path: Path) -> None:
    # Section 3.2 of arXiv 2309.14509: messages of N h elements, of which a rank has 1 / P and
    # sends all but its own part on: q, k, v and o forward, and as many tensors as named backward.
    message = 64 * 8 * CASE.size * ITEM_BYTES // ranks * (ranks - 1) // ranks
    cases = [replace(CASE, stored=stored) for stored in Stored]
    for outcomes in run_ranks(several, ranks, tmp_path, cases):
        for stored, outcome in zip(Stored, outcomes, strict=True):
            assert outcome.sent_bytes["all-to-all"] == 4 * message
            backward = len(IN_BACKWARD[stored]) + 3
            assert outcome.backward_bytes["all-to-all"] == backward * message
            assert outcome.sent_bytes["ring"] == outcome.backward_bytes["ring"] == 0


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_one_all_to_all_in_and_one_out_each_way(ranks: int, tmp_path: Path) -> None:
    for outcome in run_ranks(attention, ranks, tmp_path, UNEVEN):
        assert outcome.calls == {"all-to-all": 4, "ring": 0, "gather": 0}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_uneven_heads_are_sent_to_who_needs_them(ranks: int, tmp_path: Path) -> None:
    cases = [replace(UNEVEN, stored=stored) for stored in Stored]
    by_rank = run_ranks(several, ranks, tmp_path, cases)
    for index, stored in enumerate(Stored):
        outcomes = [of_rank[index] for of_rank in by_rank]
        forward = _moved(outcomes, ranks, "qkvo")
        backward = _moved(outcomes, ranks, IN_BACKWARD[stored] + "qkv")
        assert sum(outcome.sent_bytes["all-to-all"] for outcome in outcomes) == forward
        assert sum(outcome.backward_bytes["all-to-all"] for outcome in outcomes) == backward


def _moved(outcomes: list[Outcome], ranks: int, names: str) -> int:
    """Bytes of (token, head) pairs whose owners differ, of every tensor named by a letter."""
    tokens = share_tokens(UNEVEN.mask.tokens, ranks).tokens
    q, k, v = outcomes[0].owners
    pairs = 0
    for name in names:
        for owner, (start, stop) in enumerate({"q": q, "k": k, "v": v, "o": q}[name]):
            pairs += (stop - start) * sum(n for rank, n in enumerate(tokens) if rank != owner)
    return pairs * UNEVEN.batch * UNEVEN.size * ITEM_BYTES


@pytest.mark.parametrize("ranks", [2, 8])
def test_tile_by_tile_no_byte_more_is_sent(ranks: int, tmp_path: Path) -> None:
    cases = [
        replace(UNEVEN, tile_tokens=tile_tokens, stored=stored)
        for stored in Stored
        for tile_tokens in (None, 4)
    ]
    rounds = -(-max(share_tokens(UNEVEN.mask.tokens, ranks).tokens) // 4)
    for outcomes in run_ranks(several, ranks, tmp_path, cases):
        for stored, fused, tiled in zip(Stored, outcomes[::2], outcomes[1::2], strict=True):
            assert tiled.sent_bytes == fused.sent_bytes
            assert tiled.backward_bytes == fused.backward_bytes
            # A message a tile, each way unless q, k and v were stored; one of o; in backward one
            # of what else comes in, and one of all gradients.
            ways = 1 if stored is Stored.AFTER else 2
            assert tiled.calls["all-to-all"] == ways * rounds + 3


@pytest.mark.parametrize(("ranks", "degree"), [(2, 1), (4, 1), (4, 2), (8, 2)])
def test_a_ring_passes_k_and_v_once_round(ranks: int, degree: int, tmp_path: Path) -> None:
    case = replace(UNEVEN, heads=8, kv_heads=4, degree=degree)
    outcomes = run_ranks(attention, ranks, tmp_path, case)
    axes, tokens = share_axes(ranks, degree), share_tokens(61, ranks).tokens
    kv_bytes = 2 * case.batch * case.kv_heads // degree * case.size * ITEM_BYTES
    rows = [sum(tokens[rank] for rank in members) for members in axes.rows]
    for rank, outcome in enumerate(outcomes):
        row = axes.place(rank)[0]
        forward = sum(rows) - rows[(row + 1) % len(rows)]
        home = sum(rows) - rows[row]
        assert outcome.sent_bytes["ring"] == forward * kv_bytes
        assert outcome.backward_bytes["ring"] == (forward + home) * kv_bytes


@pytest.mark.parametrize("ranks", [2, 8])
def test_the_store_holds_what_was_asked_for(ranks: int, tmp_path: Path) -> None:
    cases = [replace(UNEVEN, stored=stored) for stored in Stored]
    for outcomes in run_ranks(several, ranks, tmp_path, cases):
        tokens = UNEVEN.mask.tokens * UNEVEN.batch * ITEM_BYTES
        rank_heads = [stop - start for start, stop in _own_heads(outcomes[0])]
        lse = tokens * rank_heads[0]
        output = lse + tokens * rank_heads[0] * UNEVEN.size
        after = output + tokens * sum(rank_heads) * UNEVEN.size
        for outcome, want in zip(outcomes, (lse, output, after), strict=True):
            assert want <= outcome.state_bytes < want + 1000  # and a few seeds of kernels
            assert outcome.held_bytes == outcome.state_bytes


def _own_heads(outcome: Outcome) -> list[tuple[int, int]]:
    return [owners[outcome.rank] for owners in outcome.owners]


@pytest.mark.parametrize(
    ("ranks", "heads", "kv_heads"), [(4, 1, 1), (4, 2, 1), (6, 4, 2), (8, 2, 2)]
)
def test_a_ring_sends_what_is_planned(
    ranks: int, heads: int, kv_heads: int, tmp_path: Path
) -> None:
    """To the byte, with as many tokens on every rank; a ring sums gradients in float32."""
    mask, size = RangeMask.full(5 * ranks, causal=True), CASE.size
    cases = [
        replace(
            CASE, mask=mask, heads=heads, kv_heads=kv_heads, batch=2, stored=stored, dtype=dtype
        )
        for stored in Stored
        for dtype in (torch.float32, torch.bfloat16)
    ]
    config = llama(
        hidden_size=heads * size, num_attention_heads=heads, num_key_value_heads=kv_heads
    )
    by_rank = run_ranks(several, ranks, tmp_path, cases)
    for case, outcomes in zip(cases, zip(*by_rank, strict=True), strict=True):
        planned = exchange_of(
            config,
            tokens=5,
            batch=2,
            ranks=ranks,
            dtype_bytes=case.dtype.itemsize,
            stored=PlannedStored(case.stored.value),
        )
        forward = planned.forward_bytes + planned.forward_beside_bytes
        backward = planned.backward_bytes + planned.backward_beside_bytes
        assert forward == max(sum(outcome.sent_bytes.values()) for outcome in outcomes)
        assert backward == max(sum(outcome.backward_bytes.values()) for outcome in outcomes)
        beside = max(outcome.sent_bytes["ring"] for outcome in outcomes)
        assert planned.forward_beside_bytes == beside > 0
        # The last gradients on their way home are waited for.
        both = max(outcome.backward_bytes["ring"] for outcome in outcomes)
        home = (both - beside) // (ranks // heads_degree(ranks, heads) - 1)
        assert planned.backward_beside_bytes == both - home
