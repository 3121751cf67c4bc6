"""Plans in the runtime's words, and models in the plans'."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM

import offload
from memo.contracts import LayerMode
from memo.kinds import find_layers, root_of
from memo.planning.applied import (
    check_model,
    division_note,
    found_plan,
    layer_placements,
    options_of,
)
from memo.planning.forecast import forecast_of, runtime_bytes
from memo.planning.live import LiveModel, live_model
from memo.tracing import trace_step
from offload import spread_placements
from planner.codec import PlanError
from planner.contracts import LayerSwap, Placement, SwapPlan, Tier
from planner.plan import NoPlan, Plan
from planner.swap.groups import spread
from tests.memo.planning.common import llama
from tests.planner.test_contracts import PLAN

WORK = PLAN.workload


def _with(*layers: LayerSwap) -> Plan:
    runs = (replace(WORK.layers[0], count=len(layers)),)
    swap = SwapPlan(tile_tokens=64, in_flight_bytes=0, layers=layers)
    return replace(PLAN, workload=replace(WORK, layers=runs), swap=swap)


def _live(**changes: Any) -> LiveModel:
    """The model that PLAN is for."""
    known: dict[str, Any] = {
        "layers": WORK.layers,
        "tiled": tuple(layer.tile_count > 1 for layer in PLAN.swap.layers),
        "parameters": WORK.parameters,
        "trainable": WORK.parameters,
        "dtype": WORK.dtype,
        "train": WORK.train,
        "ranks": WORK.ranks,
        "is_divided": False,
        **changes,
    }
    return LiveModel(**known)


def test_fractions_give_the_planned_tiles_in_the_simulated_order() -> None:
    counts = [
        {Placement.KEEP: 3, Placement.RECOMPUTE: 4, Placement.HOST: 6},
        {Placement.RECOMPUTE: 4, Placement.KEEP: 3, Placement.HOST: 6},
        {Placement.SSD: 1, Placement.RECOMPUTE: 12},
        {Placement.SSD: 0, Placement.HOST: 13},
        {Placement.KEEP: 13},
    ]
    plan = _with(*(LayerSwap(tiles=tiles, x=Tier.HOST, o=Tier.SSD) for tiles in counts))
    for read in (plan, Plan.from_json(plan.to_json())):
        for tiles, placed in zip(counts, layer_placements(read), strict=True):
            order = spread_placements(13, placed.fractions)
            assert [p.value for p in order] == [p.value for p in spread(tiles)]
            assert (placed.x, placed.o) == (offload.Tier.HOST, offload.Tier.SSD)


@pytest.mark.parametrize("count", [3, 7, 49, 127])
def test_every_split_of_a_number_of_tiles_survives_as_fractions(count: int) -> None:
    for kept in range(count + 1):
        for moved in range(0, count + 1 - kept, 5):
            tiles = {
                Placement.KEEP: kept,
                Placement.HOST: moved,
                Placement.RECOMPUTE: count - kept - moved,
            }
            (placed,) = layer_placements(_with(LayerSwap(tiles=tiles)))
            order = spread_placements(count, placed.fractions)
            assert [p.value for p in order] == [p.value for p in spread(tiles)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": WORK.layers[:1], "parameters": 5}, r"layers is .*parameters is 5"),
        ({"dtype": "float64"}, "dtype is float64, planned was"),
        ({"train": "lora" if WORK.train == "full" else "full"}, "train is .*, planned was"),
        ({"ranks": 3}, r"ranks=3 .*planned were 8, 8 to a sequence"),
    ],
)
def test_another_model_is_refused_with_what_differs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_model(PLAN, _live(**changes))


def test_a_whole_layers_x_stays_with_it() -> None:
    """torch's checkpointing holds a layer's input, and autograd what is kept."""
    for placement, is_refused in ((Placement.RECOMPUTE, True), (Placement.HOST, False)):
        plan = _with(LayerSwap(tiles={placement: 1}, x=Tier.HOST, o=Tier.HOST))
        live = _live(layers=plan.workload.layers, tiled=(False,))
        if not is_refused:
            check_model(plan, live)
            continue
        with pytest.raises(PlanError, match="layer 0 runs whole, and then its x stays"):
            check_model(plan, live)


@pytest.mark.parametrize(
    ("ranks", "device", "host", "ssd"),
    [
        (
            1,
            "1.0 GB more of the device or",
            "3.0 GB more of the host or",
            "5.0 GB more of the ssd;",
        ),
        (
            8,
            "1.0 GB more of the device on each GPU or",
            "24.0 GB more of the host on the node or",
            "40.0 GB more of the ssd on the node;",
        ),
    ],
)
def test_what_is_missing_of_the_host_and_the_ssd_is_the_nodes(
    ranks: int, device: str, host: str, ssd: str
) -> None:
    work = replace(WORK, ranks=ranks, sequence_parallel=ranks, zero=0)
    missing = {Tier.DEVICE: 10**9, Tier.HOST: 3 * 10**9, Tier.SSD: 5 * 10**9}
    none = NoPlan(workload=work, hardware=PLAN.hardware, missing_bytes=missing, longest_tokens=1024)
    with pytest.raises(PlanError) as told:
        found_plan(none)
    assert f"it takes {device} {host} {ssd} the longest sequence" in str(told.value)


# ---- how parameters are divided ----


def _parts() -> list[nn.Module]:
    """Two layers, of which the second is as ZeRO-3 leaves it, and the first whole to be used."""
    whole, part = nn.Linear(3, 5), nn.Linear(3, 5)
    for param in part.parameters():
        param.ds_numel, param.data = param.numel(), torch.empty(0)  # type: ignore[attr-defined]
    return [whole, part]


def _sharded() -> list[nn.Module]:
    """One layer as `fully_shard` makes it, whole to be used: in its forward."""
    layer = nn.Sequential(nn.Linear(3, 5))
    layer.__class__ = type("FSDPSequential", (FSDPModule, nn.Sequential), {})
    return [layer]


def _planned_for(zero: Any, ranks: int) -> Plan:
    work = replace(WORK, zero=zero, ranks=ranks, sequence_parallel=1)
    return replace(PLAN, workload=work, hardware=replace(PLAN.hardware, gpus=ranks))


@pytest.mark.parametrize("divided", [_parts, _sharded], ids=["zero", "fsdp"])
def test_parameters_divided_as_planned_need_no_word(divided: Any) -> None:
    whole = [nn.Linear(3, 5), nn.Linear(5, 3)]
    assert division_note(_planned_for(3, 2), divided()) is None
    for zero in (0, 1, 2):
        assert division_note(_planned_for(zero, 2), whole) is None
        told = division_note(_planned_for(zero, 2), divided())
        assert told is not None
        assert f"whole on each of 2 ranks (zero={zero})" in told
    for layers in (whole, divided()):
        assert division_note(_planned_for(0, 1), layers) is None, "one rank has all"


def test_whole_parameters_are_refused_where_stage_3_was_planned() -> None:
    with pytest.raises(offload.MemoError, match=r"zero=3, parameters divided among 2 ranks.*whole"):
        division_note(_planned_for(3, 2), [nn.Linear(3, 5), nn.Linear(5, 3)])


# ---- what is the runtime's ----


def test_model_states_are_not_the_runtimes() -> None:
    """AdamW's three float32 states of every parameter, and 16-bit gradients from stage 2 on."""
    work = replace(WORK, offload_optimizer="host", zero=0, dtype="bfloat16", train="full")
    states = 12 * work.parameters
    peaks = {Tier.DEVICE: 7, Tier.HOST: states + 1000, Tier.SSD: 50}
    plan = replace(PLAN, workload=work, predictions=replace(PLAN.predictions, peak_bytes=peaks))
    found = runtime_bytes(plan, _live())
    assert found == {offload.Tier.DEVICE: 7, offload.Tier.HOST: 1000, offload.Tier.SSD: 50}
    forecast = forecast_of(plan, _live())
    assert forecast.pass_s < plan.predictions.step_s
    some_frozen = forecast_of(plan, _live(trainable=work.parameters // 3))
    assert some_frozen == forecast, "plans that train in full count all as trained"
    device = replace(plan, workload=replace(work, offload_optimizer="none"))
    assert runtime_bytes(device, _live())[offload.Tier.HOST] == states + 1000


@pytest.mark.parametrize(
    ("zero", "dtype", "each"), [(0, "bfloat16", 12), (2, "bfloat16", 14), (3, "float32", 12)]
)
def test_an_engines_writes_are_not_the_runtimes(zero: Any, dtype: str, each: int) -> None:
    """What lies on the SSD is what is written there: states, and from stage 2 on gradients."""
    work = replace(WORK, offload_optimizer="ssd", zero=zero, dtype=dtype, train="full")
    own = -(-work.parameters // work.ranks) if zero else work.parameters
    told = replace(
        PLAN.predictions,
        ssd_written_bytes_per_step=each * own + 1000,
        peak_bytes={Tier.DEVICE: 7, Tier.HOST: 0, Tier.SSD: each * own + 50},
    )
    forecast = forecast_of(replace(PLAN, workload=work, predictions=told), _live())
    assert forecast.ssd_written_bytes == 1000
    assert forecast.peak_bytes[offload.Tier.SSD] == 50


def test_the_hosts_limit_has_room_for_alignment_and_keeps_the_budget() -> None:
    plan = _with(LayerSwap(tiles={Placement.HOST: 13}, x=Tier.HOST, o=Tier.HOST))
    peaks = {Tier.DEVICE: 7, Tier.HOST: 1 << 30}
    plan = replace(plan, predictions=replace(plan.predictions, peak_bytes=peaks))
    plan = replace(plan, workload=replace(plan.workload, offload_optimizer="none"))
    limit = options_of(plan, _live()).host_bytes
    assert limit is not None
    assert 1 << 30 < limit < 1.01 * (1 << 30)
    ranks = plan.workload.ranks
    tight = replace(plan, hardware=replace(plan.hardware, host_bytes=ranks * ((1 << 30) + 7)))
    assert options_of(tight, _live()).host_bytes == (1 << 30) + 7
    kept = options_of(_with(LayerSwap(tiles={Placement.KEEP: 1})), _live())
    assert kept.host_bytes is None


# ---- models ----


def _read(model: nn.Module) -> LiveModel:
    layers = find_layers(root_of(model))
    return live_model(root_of(model), layers, {layer.kind: LayerMode() for layer in layers})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_parameters_are_counted_as_the_trace_counts_them(train: Any, tied: bool) -> None:
    config = llama(num_hidden_layers=2, tie_word_embeddings=tied)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if train == "lora":
        adapters = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapters)
    trace = trace_step(config, tokens=64, tile_tokens=64, train=train, device_kind="cpu")
    live = _read(model)
    assert (live.parameters, live.trainable) == (trace.parameters, trace.trainable)
    assert (live.dtype, live.train) == ("bfloat16", train)
    assert [(run.layer_class, run.count) for run in live.layers] == [("LlamaDecoderLayer", 2)]
    named = model.named_parameters(remove_duplicate=False)
    assert live.parameters == sum({p.data_ptr(): p.numel() for _, p in named}.values())


def test_a_frozen_model_without_adapters_counts_as_trained_in_full() -> None:
    model = AutoModelForCausalLM.from_config(llama(num_hidden_layers=2))
    model.get_input_embeddings().requires_grad_(requires_grad=False)
    live = _read(model)
    assert live.train == "full"
    assert live.trainable < live.parameters


def test_what_an_engine_has_divided_counts_whole() -> None:
    model = AutoModelForCausalLM.from_config(llama(num_hidden_layers=2))
    whole = _read(model)
    assert not whole.is_divided
    for param in model.parameters():  # as ZeRO-3 leaves them
        param.ds_numel, param.data = param.numel(), torch.empty(0)
    divided = _read(model)
    assert divided.is_divided
    assert divided.parameters == whole.parameters
