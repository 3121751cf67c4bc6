"""A plan runs as it says, beside what it predicts; one for something else is refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import memo
from memo.planning import applied, here, machine
from memo.planning.node import Node
from memo.tiling import holds_pre
from memo.wrap import runtime_of
from offload import Lane, Placement, Tier
from planner.contracts import LayerSwap
from planner.contracts import Placement as Swapped
from planner.contracts import Tier as PlannedTier
from planner.swap.groups import spread
from tests.behaviour.common import TILE_TOKENS, TOKENS, batch, held_bytes, plain_model
from tests.behaviour.planned import (
    KEPT,
    MIXED,
    ON_HOST,
    ON_SSD,
    RECOMPUTED,
    failing_plan,
    placed,
    plan_with,
    planned_step,
    roomy,
)
from tests.behaviour.state import assert_restored, state_of
from tests.distributed.ranks import run_ranks
from tests.families.harness import assert_equal_grads, assert_same_step, train_step


def wrapped(layers: Sequence[LayerSwap] = RECOMPUTED, **arguments: Any) -> PreTrainedModel:
    """The small Llama under a plan with these layers."""
    model = plain_model()
    return memo.wrap(model, plan=plan_with(model.config, layers), **arguments)


UNIFORM: list[tuple[str, Sequence[LayerSwap], dict[str, Any]]] = [
    ("recomputed", RECOMPUTED, {"placement": "recompute"}),
    ("kept", KEPT, {"placement": "keep"}),
    ("on the host", ON_HOST, {"placement": "host", "skeletal": "host"}),
    ("on the ssd", ON_SSD, {"placement": "ssd", "skeletal": "ssd"}),
]


@pytest.mark.parametrize(("name", "layers", "by_hand"), UNIFORM, ids=[u[0] for u in UNIFORM])
def test_equals_the_same_placements_by_hand(
    name: str, layers: Sequence[LayerSwap], by_hand: dict[str, Any], tmp_path: Path
) -> None:
    spill: dict[str, Any] = {"spill_dir": tmp_path} if "ssd" in name else {}
    other = memo.wrap(plain_model(), tile_tokens=TILE_TOKENS, **by_hand, **spill)
    model = wrapped(layers, **spill)
    for seed in (1, 2):
        got = train_step(model, batch(seed=seed))
        expected = train_step(other, batch(seed=seed))
        assert torch.equal(got.loss, expected.loss)
        assert_equal_grads(got.grads, expected.grads)
    kinds = [memo.report(m).kinds[0] for m in (model, other)]
    assert kinds[0] == kinds[1]


def test_x_and_o_of_a_layer_go_each_to_its_own_tier(tmp_path: Path) -> None:
    apart = (
        replace(RECOMPUTED[0], x=PlannedTier.HOST, o=PlannedTier.DEVICE),
        replace(RECOMPUTED[0], x=PlannedTier.DEVICE, o=PlannedTier.SSD),
    )
    model = wrapped(apart, spill_dir=tmp_path)
    got = train_step(model, batch())
    report = memo.report(model)
    (kind,) = report.kinds
    hidden_bytes = batch()["input_ids"].numel() * 32 * 4
    assert kind.skeletal_bytes[Tier.HOST] == hidden_bytes
    assert kind.skeletal_bytes[Tier.SSD] > hidden_bytes  # with the log-sum-exp
    assert kind.skeletal_bytes[Tier.DEVICE] == hidden_bytes + kind.skeletal_bytes[Tier.SSD]
    moved = {tier: kind.skeletal_bytes[tier] for tier in (Tier.HOST, Tier.SSD)}
    assert report.moved_bytes == moved
    other = train_step(wrapped(), batch())
    assert torch.equal(got.loss, other.loss)
    assert_equal_grads(got.grads, other.grads)


def test_layers_are_placed_each_by_its_own() -> None:
    model = wrapped(MIXED)
    assert placed(model) == [[str(p) for p in spread(layer.tiles)] for layer in MIXED]
    assert placed(model)[0] != placed(model)[1]
    expected = train_step(plain_model(), batch())
    got = train_step(model, batch())
    assert_same_step(got, expected)
    (kind,) = memo.report(model).kinds
    tiles = {Placement.KEEP: 2, Placement.HOST: 4, Placement.RECOMPUTE: 4}
    assert kind.tiles == tiles
    assert kind.skeletal_bytes[Tier.HOST] == kind.skeletal_bytes[Tier.DEVICE]
    assert kind.stored_bytes[Tier.HOST] > kind.stored_bytes[Tier.DEVICE]
    other = memo.wrap(plain_model(), tile_tokens=TILE_TOKENS)
    assert_equal_grads(got.grads, train_step(other, batch()).grads)


def test_through_a_file_and_a_copy_of_the_model(tmp_path: Path) -> None:
    model = plain_model()
    plan = plan_with(model.config, MIXED)
    plan.save(tmp_path / "plan.json")
    for path in (tmp_path / "plan.json", str(tmp_path / "plan.json")):
        memo.wrap(model, plan=path)
        assert placed(model) == [[str(p) for p in spread(layer.tiles)] for layer in MIXED]
        twin = copy.deepcopy(model)
        grads = train_step(model, batch()).grads
        assert_equal_grads(train_step(twin, batch()).grads, grads)
        assert all(f.measured is not None for f in memo.report(twin).predicted[1:])
        memo.unwrap(model)


def test_layers_that_run_whole_have_their_placements() -> None:
    layers = (
        LayerSwap(tiles={Swapped.HOST: 1}),
        LayerSwap(tiles={Swapped.KEEP: 1, Swapped.RECOMPUTE: 4}),
    )
    model = plain_model("lfm2")
    expected = train_step(model, batch())
    with pytest.warns(memo.MemoWarning, match="run whole"):
        memo.wrap(model, plan=plan_with(model.config, layers))
    assert_same_step(train_step(model, batch()), expected)
    whole, tiled = memo.report(model).kinds
    assert whole.tiles == {Placement.HOST: 1}
    assert tiled.tiles == {Placement.KEEP: 1, Placement.RECOMPUTE: 4}


def test_graphs_are_held_where_the_trace_held_them() -> None:
    config = copy.deepcopy(plain_model().config)
    config.num_hidden_layers = 12
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).train()
    expected = train_step(plain, batch())
    planned, by_hand = copy.deepcopy(plain), copy.deepcopy(plain)
    layers = (LayerSwap(tiles={Swapped.RECOMPUTE: 5}, x=PlannedTier.HOST, o=PlannedTier.HOST),)
    memo.wrap(planned, plan=plan_with(config, layers * 12))
    memo.wrap(by_hand, skeletal="host", tile_tokens=TILE_TOKENS)
    x = torch.empty(2, TOKENS, 32)
    held = [
        runtime.policy(x, runtime.layers[3].module).hold_pre
        for runtime in (runtime_of(planned), runtime_of(by_hand))
    ]
    assert held == [holds_pre(x, 12), False] == [True, False]
    got = train_step(planned, batch())
    assert_same_step(got, expected)
    assert_equal_grads(got.grads, train_step(by_hand, batch()).grads)


# ---- predicted beside measured ----


def _figures(model: PreTrainedModel) -> dict[str, memo.Figure]:
    return {figure.name: figure for figure in memo.report(model).predicted}


@pytest.mark.parametrize("layers", [ON_HOST, MIXED], ids=["all", "some"])
def test_what_goes_to_the_host_is_what_was_predicted(layers: Sequence[LayerSwap]) -> None:
    model = wrapped(layers)
    for _ in range(3):
        train_step(model, batch())
    found, report = _figures(model), memo.report(model)
    peak = found["host at its peak"]
    assert peak.measured == report.peak_bytes[Tier.HOST]
    assert peak.predicted == pytest.approx(peak.measured, rel=0.03)
    moved = found["moved by d2h"]
    assert moved.measured == report.lanes[Lane.D2H].moved_bytes / 3
    # The predicted bytes are tensors', the measured ones what parcels take, in units of 512.
    assert moved.measured is not None
    assert moved.predicted <= moved.measured <= 1.25 * moved.predicted
    assert found["device at its peak"].measured is None


def test_what_goes_to_the_ssd_is_what_was_predicted(tmp_path: Path) -> None:
    model = wrapped(ON_SSD, spill_dir=tmp_path)
    train_step(model, batch())
    found, report = _figures(model), memo.report(model)
    peak = found["ssd at its peak"]
    assert peak.measured == report.peak_bytes[Tier.SSD]
    assert peak.predicted == pytest.approx(peak.measured, rel=0.03)
    assert report.wear is not None
    assert found["written to the SSD"].measured == report.wear.bytes_per_pass
    assert found["host at its peak"].why_not


def test_the_disks_space_is_reserved_before_the_first_step(tmp_path: Path) -> None:
    model = plain_model()
    plan, size_bytes = plan_with(model.config, ON_SSD), 200 << 20
    peaks = {**plan.predictions.peak_bytes, PlannedTier.SSD: size_bytes}
    plan = replace(plan, predictions=replace(plan.predictions, peak_bytes=peaks))
    wear = memo.report(memo.wrap(model, plan=plan, spill_dir=tmp_path)).wear
    assert wear is not None
    assert wear.spool_bytes >= size_bytes


def test_what_is_planned_for_the_host_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a disk, a limit that is met makes the runtime write ahead what may not fit."""
    monkeypatch.setattr(applied, "PARCEL_BYTES", 2048)
    model = wrapped(ON_HOST, spill_dir=tmp_path)
    for _ in range(2):
        train_step(model, batch())
    report = memo.report(model)
    assert Lane.SSD_WRITE not in report.lanes
    assert report.host_memory_bytes < 1.3 * report.peak_bytes[Tier.HOST]


def test_time_is_of_passes_and_starts_anew() -> None:
    model = wrapped()
    assert _figures(model)["forward and backward"].measured is None
    with torch.no_grad():
        model(**batch())
    assert _figures(model)["forward and backward"].measured is None
    for _ in range(3):
        train_step(model, batch())
    assert runtime_of(model).passes.count == 3
    time = _figures(model)["forward and backward"]
    assert time.measured is not None
    assert time.measured > 0
    assert time.error == pytest.approx(time.predicted / time.measured - 1)
    rate, mfu = (_figures(model)[n] for n in ("tokens of all ranks, in a pass", "MFU of a pass"))
    tokens = batch()["input_ids"].numel()
    assert rate.measured is not None
    assert rate.predicted * time.predicted == pytest.approx(tokens)
    assert rate.measured * time.measured == pytest.approx(tokens)
    assert mfu.measured is not None
    assert mfu.predicted * time.predicted == pytest.approx(mfu.measured * time.measured)
    assert mfu.predicted > 0
    memo.report(model, reset=True)
    assert _figures(model)["forward and backward"].measured is None


def test_as_text() -> None:
    model = wrapped(ON_HOST)
    plan = memo.report(model).plan
    assert plan is not None
    assert plan.swap.layers == ON_HOST
    assert "planned beside measured" in str(memo.report(model))
    assert "not measured: no backward" in str(memo.report(model))
    train_step(model, batch())
    text = " ".join(str(memo.report(model)).split())
    assert "host at its peak" in text
    assert "not measured: tensors of" in text
    assert "planned beside" not in str(memo.report(memo.wrap(plain_model())))


# ---- refusals ----


def _refused(model: PreTrainedModel, **arguments: Any) -> str:
    """The message, of one that leaves the model as it was."""
    state = state_of(model)
    with pytest.raises(ValueError, match=r"\S") as caught:
        memo.wrap(model, **arguments)
    assert_restored(model, state)
    return str(caught.value)


@pytest.mark.parametrize(
    "beside",
    [
        {"tile_tokens": "auto"},
        {"tile_tokens": 5},
        {"placement": "recompute"},
        {"skeletal": "keep"},
        {"in_flight_bytes": 0},
        {"host_bytes": 1 << 30},
    ],
    ids=str,
)
def test_what_a_plan_decides_is_refused_beside_it(beside: dict[str, Any]) -> None:
    model = plain_model()
    (name,) = beside
    plan = plan_with(model.config)
    assert _refused(model, plan=plan, **beside).startswith(f"{name} beside plan")
    assert _refused(model, tokens=TOKENS, **beside).startswith(f"{name} beside tokens")


def test_arguments_that_do_not_go_together() -> None:
    model = plain_model()
    plan = plan_with(model.config)
    assert _refused(model, plan=plan, tokens=TOKENS, batch=2).startswith("tokens, batch beside")
    assert _refused(model, plan=plan, sequence_parallel=2).startswith("sequence_parallel beside")
    assert _refused(model, batch=2).startswith("batch says how much")
    assert _refused(model, plan=plan, tiled_loss=False).startswith("tiled_loss=False")
    assert _refused(model, plan=plan, spill_dir="/tmp").startswith("spill_dir is given, but")
    assert "takes a Plan" in _refused(model, plan=5)
    on_ssd = plan_with(model.config, ON_SSD)
    assert "takes spill_dir" in _refused(model, plan=on_ssd)
    peaks = {**on_ssd.predictions.peak_bytes, PlannedTier.SSD: 5 << 20}
    large = replace(on_ssd, predictions=replace(on_ssd.predictions, peak_bytes=peaks))
    told = _refused(model, plan=large, spill_dir="/tmp", spill_bytes=4 << 20)
    assert told.startswith("spill_bytes=4194304: the plan takes")


def test_a_plan_for_something_else_is_refused_with_what_differs() -> None:
    model = plain_model()
    plan = plan_with(model.config)
    other = plain_model("qwen3")
    told = _refused(other, plan=plan)
    assert "layers is 2 x Qwen3DecoderLayer, planned was 2 x LlamaDecoderLayer" in told
    assert "dtype is bfloat16, planned was float32" in _refused(plain_model().bfloat16(), plan=plan)
    wider = copy.deepcopy(model.config)
    wider.intermediate_size += 8
    assert "parameters is 21984, planned was" in _refused(plain_model(), plan=plan_with(wider))
    over_four = roomy(gpus=4, link_bytes_per_s=1e9)
    parallel = plan_with(model.config, hardware=over_four, sequence_parallel=1)
    told = _refused(model, plan=parallel)
    assert "ranks=1" in told
    assert "planned were 4, 1 to a sequence" in told


def test_other_numbers_of_tiles_are_refused() -> None:
    model = plain_model()
    plan = plan_with(model.config)
    fewer = replace(plan, swap=replace(plan.swap, tile_tokens=6))
    assert "layer 0 runs tile by tile, in 4 tiles, and planned were 5" in _refused(
        model, plan=fewer
    )


def test_no_plan_is_refused_with_its_reason(tmp_path: Path) -> None:
    model = plain_model()
    tight = roomy(device_bytes=100_000)
    found = memo.plan(
        model.config, tokens=TOKENS, dtype="float32", hardware=tight, tile_tokens=TILE_TOKENS
    )
    assert isinstance(found, memo.NoPlan)
    told = _refused(model, plan=found)
    assert told.startswith("plan is a NoPlan: 1 x 23 tokens of llama do not fit: it takes")
    assert "more of the device" in told
    assert "longest sequence that fits" in told
    (tmp_path / "bad.json").write_text("{}")
    assert "bad.json: this is no plan" in _refused(model, plan=tmp_path / "bad.json")
    with pytest.raises(FileNotFoundError):
        memo.wrap(model, plan=tmp_path / "none.json")


def test_calls_of_another_length_or_batch_are_refused() -> None:
    model = wrapped(MIXED)
    short = {name: tensor[:, :-1] for name, tensor in batch().items()}
    for inputs, shape in ((short, "2 x 22"), (batch(3), "3 x 23")):
        with pytest.raises(memo.MemoError, match=f"this call has {shape} tokens.*for 2 x 23:"):
            model(**inputs)
        with torch.no_grad():
            assert model(**inputs).loss.isfinite()
    assert held_bytes(model) == 0
    assert_same_step(train_step(model, batch()), train_step(plain_model(), batch()))


def _as_if_planned_for(model: PreTrainedModel, zero: Any) -> None:
    """The model's plan becomes one for two ranks that divide by this ZeRO stage."""
    runtime = runtime_of(model)
    assert runtime.forecast is not None
    plan = runtime.forecast.plan
    workload = replace(plan.workload, zero=zero, ranks=2)
    plan = replace(plan, workload=workload, hardware=replace(plan.hardware, gpus=2))
    runtime.forecast = replace(runtime.forecast, plan=plan)


def test_parameters_that_nobody_divided_are_refused_in_a_call_with_gradients() -> None:
    model = wrapped(MIXED)
    _as_if_planned_for(model, zero=3)
    with torch.no_grad():
        assert model(**batch()).loss.isfinite()
    for _ in range(2):
        with pytest.raises(memo.MemoError, match="the plan is for zero=3, parameters divided"):
            model(**batch())
    assert held_bytes(model) == 0
    for param in model.parameters():  # as ZeRO-3 has them while it runs a layer
        param.ds_numel = param.numel()  # type: ignore[attr-defined]
    assert_same_step(train_step(model, batch()), train_step(plain_model(), batch()))
    assert memo.report(model).notes == {}


def test_parameters_that_somebody_divided_are_told_once() -> None:
    model = wrapped(MIXED)
    _as_if_planned_for(model, zero=1)
    for param in model.parameters():
        param.ds_numel = param.numel()  # type: ignore[attr-defined]
    for _ in range(2):
        train_step(model, batch())
    ((note, times),) = memo.report(model).notes.items()
    assert "whole on each of 2 ranks (zero=1)" in note
    assert times == 1


# ---- a length to plan for ----


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the machine that is found, in place of measuring this one."""

    def set_to(**changes: Any) -> None:
        hardware = roomy(**changes)
        monkeypatch.setattr(here, "machine_of", lambda *_: Node(hardware, "cpu"))

    return set_to


def test_a_length_is_planned_for_on_this_machine() -> None:
    model = plain_model()
    memo.wrap(model, tokens=TOKENS, batch=2)
    assert_same_step(train_step(model, batch()), train_step(plain_model(), batch()))
    assert memo.report(model).kinds[0].tiles == {Placement.KEEP: 2}, "there is room for all"
    assert memo.report(model).predicted
    with pytest.raises(memo.MemoError, match="2 x 22 tokens"):
        model(**{name: tensor[:, :-1] for name, tensor in batch().items()})


def test_less_memory_is_planned_for_otherwise(small_machine: Any, tmp_path: Path) -> None:
    model = plain_model()
    kept = plan_with(model.config, KEPT).predictions.peak_bytes
    (device_bytes,) = [size for tier, size in kept.items() if tier == "device"]
    small_machine(device_bytes=device_bytes - 60_000, d2h_bytes_per_s=1e6, h2d_bytes_per_s=1e6)
    memo.wrap(model, tokens=TOKENS, batch=2, spill_dir=tmp_path)
    assert_same_step(train_step(model, batch()), train_step(plain_model(), batch()))
    assert set(memo.report(model).kinds[0].tiles) != {Placement.KEEP}


def test_nothing_fits(small_machine: Any) -> None:
    model = plain_model()
    small_machine(device_bytes=480_000, host_bytes=1)
    state = state_of(model)
    with pytest.raises(memo.MemoError, match="4,096 tokens of LlamaForCausalLM do not fit") as told:
        memo.wrap(model, tokens="4k")
    assert "more of the device" in str(told.value)
    assert "the longest sequence that fits is" in str(told.value)
    assert_restored(model, state)


@pytest.mark.parametrize("tokens", [0, -1, 1.5, True, "1.5M"])
def test_lengths_that_are_none(tokens: Any, small_machine: Any) -> None:
    small_machine()
    assert "tokens is" in _refused(plain_model(), tokens=tokens)


def test_a_body_alone_is_no_causal_lm(small_machine: Any) -> None:
    small_machine()
    with pytest.raises(memo.MemoError, match=r"this LlamaModel is something else: .*parameters is"):
        memo.wrap(plain_model().base_model, tokens=TOKENS)


def test_memory_that_the_model_takes_is_counted_as_free() -> None:
    model = plain_model()
    model(**batch()).loss.backward()
    size = sum(p.numel() for p in model.parameters()) * 4
    buffers = sum({b.data_ptr(): b.numel() * 4 for b in model.buffers()}.values())
    assert machine.held_bytes(model, torch.device("cpu")) == 2 * size + buffers
    assert machine.held_bytes(model, torch.device("meta")) == 0


# ---- ranks that share a sequence ----


def test_the_first_rank_plans_for_all(tmp_path: Path) -> None:
    expected = train_step(plain_model(), batch())
    for got in run_ranks(planned_step, 2, tmp_path):
        assert_same_step(got, expected)


def test_all_ranks_are_told_when_there_is_no_plan(tmp_path: Path) -> None:
    first, second = run_ranks(failing_plan, 2, tmp_path)
    assert first.startswith("2 x 23 tokens of LlamaForCausalLM do not fit")
    assert second == f"the first rank made no plan: {first}"
