"""The comparison of sequence parallelism: ranks that are ended, bytes counted, peers held against
one process.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from typing import Any

import psutil
import pytest
from torch import distributed as dist

from benchmarks import ulysses_heads, ulysses_tables
from benchmarks.ulysses_case import Peer, Phase, UlyssesCase, UlyssesJob, UlyssesSample
from benchmarks.ulysses_rank import measure, reference_gradients
from benchmarks.ulysses_ranks import RankError, Say, listen, results
from benchmarks.ulysses_rows import StageRow, layer_bytes, peer_row
from benchmarks.ulysses_wire import ulysses_bytes

LIMIT_S = 240.0
CASE = UlyssesCase(
    tokens=602,  # no multiple of a tile or of the MLP's tile
    ranks=2,
    zero=0,
    layers=2,
    hidden=48,
    intermediate=80,
    heads=6,
    kv_heads=2,
    vocab=300,
    dtype="float32",
)


def failing(say: Say) -> None:
    say(os.getpid())
    if dist.get_rank() == 1:
        raise ValueError("this one fails")
    dist.barrier()  # waits for the other


def dying(say: Say) -> None:
    say(os.getpid())
    os._exit(7)


def test_a_rank_that_fails_is_told_and_none_is_left() -> None:
    pids: list[int] = []
    with pytest.raises(RankError, match="this one fails"):
        pids.extend(word.value for word in listen(failing, 2, limit_s=LIMIT_S))
    assert pids
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_rank_that_dies_is_told() -> None:
    with pytest.raises(RankError, match="ended with 7"):
        results(dying, 1, limit_s=LIMIT_S)


def _by_hand(tokens: int, heads: int, kv_heads: int, size: int, ranks: int) -> int:
    """Every element of q, k, v and o that a rank computes with and another one has."""
    groups, own = heads // kv_heads, heads // ranks
    sent = 0
    for token, rank in product(range(tokens), range(ranks)):
        if token * ranks // tokens == rank:
            continue
        queries = range(rank * own, (rank + 1) * own)
        sent += 2 * len(queries) * size + 2 * len({head // groups for head in queries}) * size
    return sent


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks"), [(8, 8, 2), (8, 4, 4), (8, 2, 8), (6, 2, 2)]
)
def test_the_formula_is_what_has_to_travel(heads: int, kv_heads: int, ranks: int) -> None:
    shape: dict[str, int] = {"tokens": 24, "heads": heads, "kv_heads": kv_heads, "ranks": ranks}
    assert ulysses_bytes(**shape, head_dim=5, item_bytes=2) == 2 * _by_hand(**shape, size=5)


def test_the_formula_is_of_even_shares() -> None:
    with pytest.raises(ValueError, match="heads is 9: takes a multiple of 2 ranks"):
        ulysses_bytes(tokens=8, heads=9, kv_heads=3, head_dim=4, ranks=2, item_bytes=4)


def test_counted_bytes_of_any_heads_are_the_formula() -> None:
    rows = ulysses_heads.measured(3, limit_s=LIMIT_S)  # divides neither 8 heads nor 203 tokens
    assert [(row.heads, row.kv_heads) for row in rows] == list(ulysses_heads.HEADS)
    assert all(row.counted_bytes == row.formula_bytes > 0 for row in rows)
    assert ulysses_heads.table(rows).row_count == len(rows)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[Peer, list[UlyssesSample]]:
    """All peers on two ranks, beside one process."""
    pytest.importorskip("deepspeed")
    path = tmp_path_factory.mktemp("reference") / "gradients.pt"
    spill_dir = tmp_path_factory.mktemp("spill")
    (loss,) = results(reference_gradients, 1, CASE, str(path), limit_s=LIMIT_S)
    found = {}
    for peer in Peer:
        job = UlyssesJob(
            case=CASE,
            peer=peer,
            phase=Phase.PEAK,
            gradients=path,
            spill_dir=spill_dir if peer is Peer.MEMO_SSD else None,
        )
        found[peer] = results(measure, CASE.ranks, job, limit_s=LIMIT_S)
        assert [sample.loss for sample in found[peer]] == pytest.approx([loss] * 2, rel=1e-5)
    assert not list(spill_dir.iterdir())
    return found


@pytest.mark.long
@pytest.mark.timeout(LIMIT_S)
def test_gradients_are_those_of_one_process_and_a_peers_scale_is_seen(
    peaks: dict[Peer, list[UlyssesSample]],
) -> None:
    for sample in (*peaks[Peer.MEMO], *peaks[Peer.MEMO_SSD]):
        assert sample.gradient_error is not None
        assert sample.gradient_error < 1e-5
        assert sample.gradient_scale == pytest.approx(1, rel=1e-5)
    for sample in peaks[Peer.ALST]:
        # The recipe's all-gather adds up every rank's gradient, and the engine takes their mean
        # over the ranks of no sequence group: two times too large on two ranks.
        assert sample.gradient_scale == pytest.approx(2, rel=0.05)


@pytest.mark.long
@pytest.mark.timeout(LIMIT_S)
def test_all_peers_send_what_the_formula_says(peaks: dict[Peer, list[UlyssesSample]]) -> None:
    for peer, samples in peaks.items():
        sent = sum(sample.sent_bytes for sample in samples)
        assert sent == CASE.layers * layer_bytes(CASE, peer)


def _samples(peer: Peer, step_s: float, growth_bytes: int, **peak: Any) -> list[UlyssesSample]:
    sent = layer_bytes(CASE, peer) * CASE.layers // CASE.ranks
    told: dict[str, Any] = {"gradient_error": 1e-7, "gradient_scale": 1.0, **peak}
    told.setdefault("gradient_error_rescaled", told["gradient_error"])
    return [
        sample
        for rank in range(CASE.ranks)
        for sample in (
            UlyssesSample(
                rank=rank,
                peer=peer,
                phase=Phase.TIME,
                loss=1.0,
                step_s=(step_s, step_s + 1, step_s + 5),
                cpu_s=(step_s / 2,),
            ),
            UlyssesSample(
                rank=rank,
                peer=peer,
                phase=Phase.PEAK,
                loss=1.0,
                growth_bytes=growth_bytes + rank,
                sent_bytes=sent,
                **told,
            ),
        )
    ]


def _stage(memo: list[UlyssesSample]) -> StageRow:
    alst = _samples(Peer.ALST, 9.0, 999, gradient_scale=2.0)
    return StageRow(
        zero=0, memo=peer_row(CASE, Peer.MEMO, memo), alst=peer_row(CASE, Peer.ALST, alst + memo)
    )


def test_ratios_are_of_medians_and_of_the_fullest_rank() -> None:
    stage = _stage(_samples(Peer.MEMO, 4.0, 499))
    assert stage.time_ratio == 5.0 / 10.0
    assert stage.memory_ratio == 500 / 1000
    assert stage.is_met
    assert ulysses_tables.comparison(CASE, [stage]).row_count == 2
    assert ulysses_tables.wire(CASE, [stage]).row_count == 2


@pytest.mark.parametrize(
    "memo",
    [
        _samples(Peer.MEMO, 10.0, 499),
        _samples(Peer.MEMO, 4.0, 800),
        _samples(Peer.MEMO, 4.0, 499, gradient_error=1e-4),
        [replace(s, sent_bytes=s.sent_bytes + 8) for s in _samples(Peer.MEMO, 4.0, 499)],
    ],
)
def test_what_is_not_met_is_told(memo: list[UlyssesSample]) -> None:
    assert not _stage(memo).is_met


def test_a_row_takes_both_phases() -> None:
    times = [s for s in _samples(Peer.MEMO, 4.0, 499) if s.phase is Phase.TIME]
    with pytest.raises(ValueError, match="takes both"):
        peer_row(CASE, Peer.MEMO, times)
