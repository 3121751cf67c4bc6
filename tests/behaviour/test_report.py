"""The report: what was kept, moved and rebuilt, how each kind of layer runs, and what fell back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.filesize import decimal

import memo
from memo.passes import Passes
from memo.predicted import FIRST_PASS, NO_PASS
from memo.wrap import runtime_of
from offload import Lane, Placement, Tier
from tests.behaviour.common import (
    TILE_TOKENS,
    TOKENS,
    batch,
    models,
    only_ids,
    plain_model,
    wrapped_model,
)
from tests.behaviour.planned import plan_with
from tests.families.harness import train_step

LAYERS, TILES = 2, 5
HIDDEN_BYTES = 2 * TOKENS * 32 * 4
"""Of x, and of o, of one layer in float32, two rows."""


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("recompute", (0, 0, 0, 5)),
        ("keep", (5, 0, 0, 0)),
        ("host", (0, 5, 0, 0)),
        ("ssd", (0, 0, 5, 0)),
        ({"host": 0.2, "recompute": 0.8}, (0, 1, 0, 4)),
        ({"keep": 0.4, "recompute": 0.6}, (2, 0, 0, 3)),
        ({"keep": 0.25, "host": 0.75}, (1, 4, 0, 0)),
        ({"keep": 0.3, "host": 0.3, "recompute": 0.4}, (2, 1, 0, 2)),
    ],
    ids=str,
)
def test_tiles_by_placement(
    placement: str | dict[str, float], expected: tuple[int, int, int, int], tmp_path: Path
) -> None:
    spill: dict[str, Any] = {"spill_dir": tmp_path} if placement == "ssd" else {}
    wrapped = wrapped_model(placement=placement, **spill)
    for steps in (1, 2):
        train_step(wrapped, batch())
        (kind,) = memo.report(wrapped).kinds
        tiles = tuple(kind.tiles.get(place, 0) for place in Placement)
        assert tiles == tuple(steps * LAYERS * count for count in expected)
        assert sum(tiles) == steps * LAYERS * TILES
        assert kind.calls == steps * LAYERS


def test_bytes() -> None:
    wrapped = wrapped_model(placement="host", skeletal="host")
    train_step(wrapped, batch())
    report = memo.report(wrapped)
    (kind,) = report.kinds
    log_sum_exp_bytes = 2 * 4 * TOKENS * 4  # rows, heads, tokens, float32
    skeletal_bytes = LAYERS * (2 * HIDDEN_BYTES + log_sum_exp_bytes)
    assert kind.skeletal_bytes == {Tier.HOST: skeletal_bytes}
    assert kind.stored_bytes.keys() == {Tier.HOST}
    moved_bytes = skeletal_bytes + kind.stored_bytes[Tier.HOST]
    assert report.moved_bytes == {Tier.HOST: moved_bytes, Tier.SSD: 0}
    assert report.peak_bytes == {Tier.HOST: moved_bytes, Tier.DEVICE: 0, Tier.SSD: 0}
    assert report.device_peak_bytes is None or report.device_peak_bytes >= 0


@pytest.mark.parametrize("in_flight_bytes", [None, 0, 3000])
def test_lanes(in_flight_bytes: int | None) -> None:
    wrapped = wrapped_model(placement="host", skeletal="host", in_flight_bytes=in_flight_bytes)
    train_step(wrapped, batch())
    report = memo.report(wrapped)
    written, landed = (report.lanes.get(lane) for lane in (Lane.D2H, Lane.H2D))
    assert written is not None
    assert written.moved_bytes >= report.moved_bytes[Tier.HOST]  # and what aligns it
    landed_bytes = 0 if landed is None else landed.moved_bytes
    assert landed_bytes + report.forwarded_bytes == written.moved_bytes
    assert (landed is None) == (in_flight_bytes is None)  # two layers fit into the default
    assert in_flight_bytes is None or report.in_flight_peak_bytes <= in_flight_bytes
    shown = str(report)
    assert f"d2h: {decimal(written.moved_bytes)} in {written.copies} copies" in shown
    assert "compute waited for it" in shown


def test_without_transfers_no_lane_is_shown() -> None:
    wrapped = wrapped_model()
    train_step(wrapped, batch())
    report = memo.report(wrapped)
    assert report.lanes == {}
    assert "d2h:" not in str(report)


def test_attention_kernels_are_named() -> None:
    wrapped = wrapped_model()
    train_step(wrapped, batch())
    ((shape, kernel),) = memo.report(wrapped).attention.items()
    assert kernel == "sdpa"
    assert shape.startswith("causal, float32, ")
    assert f"attention: {kernel} for {shape}" in " ".join(str(memo.report(wrapped)).split())


def test_recompute_moves_and_stores_nothing_but_x_and_o() -> None:
    wrapped = wrapped_model()
    train_step(wrapped, batch())
    report = memo.report(wrapped)
    (kind,) = report.kinds
    assert kind.stored_bytes == {}
    assert report.moved_bytes == {Tier.HOST: 0, Tier.SSD: 0}
    assert report.peak_bytes[Tier.HOST] == 0
    assert report.peak_bytes[Tier.DEVICE] == kind.skeletal_bytes[Tier.DEVICE]


def test_a_longer_sequence_has_more_tiles() -> None:
    wrapped = wrapped_model()
    train_step(wrapped, {name: tensor[:, :4] for name, tensor in batch().items()})
    assert memo.report(wrapped, reset=True).kinds[0].tiles == {Placement.RECOMPUTE: LAYERS}
    train_step(wrapped, batch())
    assert memo.report(wrapped).kinds[0].tiles == {Placement.RECOMPUTE: LAYERS * TILES}


def test_reset_starts_anew() -> None:
    wrapped = wrapped_model(placement="host")
    train_step(wrapped, batch())
    with pytest.warns(memo.MemoWarning):
        wrapped(**batch()).logits.sum()
    before = memo.report(wrapped, reset=True)
    assert before.kinds[0].calls
    assert before.notes
    after = memo.report(wrapped)
    (kind,) = after.kinds
    assert (kind.calls, kind.tiles, kind.stored_bytes, kind.skeletal_bytes) == (0, {}, {}, {})
    assert after.notes == {}
    assert set(after.moved_bytes.values()) == {0}
    assert before.kinds[0].calls, "a report that was taken stays as it was"


def _as_if_on(monkeypatch: pytest.MonkeyPatch, model: Any, *devices: str) -> dict[str, int]:
    """Lets the layers seem to be on these CUDA devices; returns PyTorch's peaks by device."""
    peaks = {f"cuda:{index}": 100 * (index + 1) for index in range(4)}
    for layer, name in zip(runtime_of(model).layers, devices, strict=True):
        param = SimpleNamespace(device=torch.device(name))
        monkeypatch.setattr(layer.module, "parameters", lambda param=param: iter([param]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[str(device)])
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update({str(device): 1})
    )
    return peaks


def test_reset_lets_the_devices_peaks_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = wrapped_model()
    train_step(wrapped, batch())
    peaks = _as_if_on(monkeypatch, wrapped, "cuda:1", "cuda:2")
    assert memo.report(wrapped).device_peak_bytes == 300, "of the devices, the one with most"
    assert peaks == {"cuda:0": 100, "cuda:1": 200, "cuda:2": 300, "cuda:3": 400}
    assert memo.report(wrapped, reset=True).device_peak_bytes == 300
    assert peaks == {"cuda:0": 100, "cuda:1": 1, "cuda:2": 1, "cuda:3": 400}
    assert memo.report(wrapped).device_peak_bytes == 1


def test_a_model_on_no_gpu_has_no_devices_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = wrapped_model()
    train_step(wrapped, batch())
    peaks = _as_if_on(monkeypatch, wrapped, "cpu", "cpu")
    assert memo.report(wrapped, reset=True).device_peak_bytes is None
    assert 1 not in peaks.values()


def test_a_device_beside_its_plan_is_measured_without_the_first_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapped = plain_model()
    memo.wrap(wrapped, plan=plan_with(wrapped.config))

    def measured() -> tuple[float | None, str]:
        with monkeypatch.context() as patched:
            _as_if_on(patched, wrapped, "cuda:1", "cuda:1")
            figures = {figure.name: figure for figure in memo.report(wrapped).predicted}
        return figures["device at its peak"].measured, figures["device at its peak"].why_not

    def reset() -> None:
        with monkeypatch.context() as patched:
            _as_if_on(patched, wrapped, "cuda:1", "cuda:1")
            memo.report(wrapped, reset=True)

    reset()
    assert measured() == (None, NO_PASS)
    train_step(wrapped, batch())
    assert measured() == (None, FIRST_PASS)
    train_step(wrapped, batch())
    assert measured()[0] == 200
    reset()
    assert measured() == (None, NO_PASS)
    train_step(wrapped, batch())
    assert measured()[0] == 200


def test_the_end_of_the_first_pass_lets_the_devices_peak_start_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes, reset = Passes(), list[str]()
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: reset.append(str(device))
    )
    monkeypatch.setattr("memo.passes._now", lambda _: 0.0)
    for count in range(3):
        assert len(reset) == min(count, 1)
        x = torch.ones(2, requires_grad=True)
        y = x * 2
        start = passes.begin(x)
        passes.end_with(y, SimpleNamespace(device=torch.device("cuda:3")), start, is_one_node=True)  # type: ignore[arg-type]
        y.sum().backward()
        passes.reset()
    assert reset == ["cuda:3"]


def test_evaluation_counts_nothing() -> None:
    wrapped = wrapped_model().eval()
    wrapped.requires_grad_(False)
    wrapped(**batch())
    assert memo.report(wrapped).kinds[0].calls == 0


def test_a_kind_that_runs_whole_says_why() -> None:
    _, wrapped = models("lfm2", placement="host")
    train_step(wrapped, batch())
    whole, tiled = memo.report(wrapped).kinds
    assert (whole.tiled, tiled.tiled) == (False, True)
    assert tiled.reason is None
    assert whole.reason is not None
    assert "attention interface" in whole.reason
    assert whole.tiles == {Placement.HOST: 1}
    assert tiled.tiles == {Placement.HOST: TILES}
    notes = memo.report(wrapped).notes
    assert any(whole.kind in note and whole.reason in note for note in notes)
    assert whole.reason.split(":")[0] in " ".join(str(memo.report(wrapped)).split())


def test_events_are_warned_of_once_and_counted() -> None:
    wrapped = wrapped_model()
    with pytest.warns(memo.MemoWarning, match="logits were made whole"):
        wrapped(**batch()).logits.sum()
    for _ in range(2):  # another warning would be an error
        wrapped(**batch()).logits.sum()
    assert list(memo.report(wrapped).notes.values()) == [3]


@pytest.mark.parametrize(("tile_tokens", "is_noted"), [(TOKENS, True), (TILE_TOKENS, False)])
def test_fractions_of_too_few_tiles_are_told(tile_tokens: int, is_noted: bool) -> None:
    wrapped = wrapped_model(placement={"keep": 0.5, "recompute": 0.5}, tile_tokens=tile_tokens)
    train_step(wrapped, batch())
    notes = memo.report(wrapped).notes
    assert any(f"1 tile(s) of {TOKENS} tokens" in note for note in notes) is is_noted


def test_nothing_fell_back() -> None:
    wrapped = wrapped_model()
    train_step(wrapped, batch())
    wrapped(**only_ids()).logits.sum()
    wrapped.generate(only_ids()["input_ids"], max_new_tokens=2)  # type: ignore[operator]
    assert memo.report(wrapped).notes == {}


def test_as_text() -> None:
    wrapped = wrapped_model(placement={"host": 0.2, "recompute": 0.8})
    train_step(wrapped, batch())
    report = memo.report(wrapped)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(report)
    for text in (str(report), captured.get()):
        assert f"tiles of {TILE_TOKENS} tokens" in text
        assert "LlamaDecoderLayer" in text
        assert "0 / 2 / 0 / 8" in text
        assert "stored at the peak: device" in text


def test_before_the_first_step() -> None:
    report = memo.report(wrapped_model())
    assert report.tile_tokens is None
    assert "tiles of ? tokens" in str(report)
