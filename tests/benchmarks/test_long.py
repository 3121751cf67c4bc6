"""The long run, made short: its loss is one process's, its figures are those of every rank, and one
rank alone does the same work.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import long
from benchmarks.long_case import LongCase, RankResult
from benchmarks.long_plan import LongPrediction
from benchmarks.long_rank import built
from benchmarks.long_show import LongResult, save, table
from benchmarks.random_model import SEED
from memo.parallel.alone import LoneWire
from memo.planning.emulate import Emulation, emulate
from memo.planning.node import Node
from memo.planning.request import PlanRequest
from planner.hardware import Hardware

CASE = LongCase(
    tokens=701,
    ranks=2,
    layers=2,
    hidden=32,
    intermediate=48,
    heads=4,
    kv_heads=2,
    vocab=128,
    window=150,
    dtype="float32",
)
LIMIT_S = 240.0


@pytest.fixture(scope="module")
def result() -> LongResult:
    return long.run(CASE, Console(quiet=True), LIMIT_S)


def test_the_loss_is_that_of_one_process(result: LongResult) -> None:
    generator = torch.Generator().manual_seed(SEED)
    warm_up, ids = (
        torch.randint(0, CASE.vocab, (1, tokens), generator=generator.manual_seed(SEED))
        for tokens in (1024, CASE.tokens)
    )
    model = built(CASE)
    # The warm-up's update comes first: AdamW's is the sign of the gradient, nearly.
    loss: Tensor = model(input_ids=warm_up, labels=warm_up).loss
    loss.backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    optimizer.step()
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss)
    assert [rank.loss for rank in result.ranks] == pytest.approx([expected] * 2, rel=1e-4)


def test_every_rank_tells_its_figures(result: LongResult) -> None:
    assert [rank.rank for rank in result.ranks] == [0, 1]
    assert sum(rank.tokens for rank in result.ranks) == CASE.tokens
    for rank in result.ranks:
        assert 0 < rank.growth_bytes < 1.5 * rank.resident_bytes
        assert rank.sent_bytes["all-to-all"] > 0
        assert rank.cpu_s > 0


def _emulated(rank: int) -> Emulation:
    rate = 1e10
    hardware = Hardware(
        device="cpu",
        gpus=CASE.ranks,
        device_bytes=1 << 40,
        peak_flops_per_s={CASE.dtype: rate},
        device_bytes_per_s=rate,
        d2h_bytes_per_s=rate,
        h2d_bytes_per_s=rate,
        link_bytes_per_s=rate,
        host_bytes=1 << 40,
    )
    request = PlanRequest(
        name="long",
        config=CASE.config(),
        tokens=CASE.tokens,
        node=Node(hardware, "cpu"),
        zero=0,
        offload_optimizer="none",
        sequence_parallel=CASE.ranks,
        dtype=CASE.dtype,
        find_longest=False,
        lay_out=False,
    )
    return emulate(request, rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_alone_sends_what_it_sends_among_others(result: LongResult, rank: int) -> None:
    alone, among = _emulated(rank), result.ranks[rank]
    assert alone.tokens == among.tokens
    assert alone.sent_bytes == sum(among.sent_bytes.values())
    assert alone.measured_bytes > 0
    assert alone.predicted_bytes > 0


def test_a_rank_that_is_none_of_them_is_refused() -> None:
    with pytest.raises(ValueError, match="rank is 2: takes 0 to 1"):
        _emulated(2)


def test_a_lone_wire_gives_back_what_is_sent() -> None:
    wire, sent = LoneWire.of(1, 3), torch.arange(6.0)
    received = wire.all_to_all(sent, [1, 2, 3], [2, 2, 5]).wait()
    assert received.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 1.0, 2.0]
    assert wire.counts["all-to-all"].sent_bytes == (1 + 3) * 4  # type: ignore[index]
    assert wire.shift(sent, 2, to=0, source=2).wait().tolist() == [0.0, 1.0]
    assert wire.all_to_all(sent[:0], [0] * 3, [1] * 3).wait().tolist() == [0.0] * 3
    assert wire.gather(torch.tensor([4])).tolist() == [[4]] * 3


def _made(peak_bytes: int, planned_bytes: int) -> LongResult:
    rank = RankResult(
        rank=0,
        tokens=4,
        base_bytes=1000,
        growth_bytes=peak_bytes - 1000,
        resident_bytes=peak_bytes,
        method="sampled",
        step_s=1.0,
        cpu_s=1.0,
        loss=2.0,
        sent_bytes={"all-to-all": 5},
    )
    prediction = LongPrediction(peak_bytes=planned_bytes, tile_tokens=2)
    ranks = [rank, replace(rank, rank=1, growth_bytes=planned_bytes - 1000)]
    return LongResult(case=CASE, prediction=prediction, ranks=ranks, wall_s=3.0)


@pytest.mark.parametrize(
    ("peak_bytes", "planned_bytes", "is_predicted"),
    [(10_000, 10_400, True), (10_000, 9_600, True), (10_000, 10_600, False), (9_000, 8_000, False)],
)
def test_a_prediction_is_right_within_a_twentieth(
    peak_bytes: int, planned_bytes: int, is_predicted: bool, tmp_path: Path
) -> None:
    made, path = _made(peak_bytes, planned_bytes), tmp_path / "long.json"
    assert made.worst_error == pytest.approx(planned_bytes / peak_bytes - 1)
    assert made.is_predicted is is_predicted
    assert table(made).row_count == 2
    save(made, path)
    document = json.loads(path.read_text())
    assert document["worst_error"] == made.worst_error
    assert [rank["error"] for rank in document["ranks"]] == [made.worst_error, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "takes a whole number above 0"),
        (["--tokens", "many"], "takes a whole number above 0"),
        (["--tokens", "3", "--ranks", "4"], "tokens is 3: takes 4, one for each rank, or more"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        long.main(arguments)
    assert message in capsys.readouterr().err


def test_the_published_run_is_a_million_tokens_over_eight_ranks() -> None:
    case = long.case_of(long.parser().parse_args([]))
    assert (case.tokens, case.ranks, case.window) == (1_048_576, 8, 4096)
