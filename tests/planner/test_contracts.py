"""Plans to JSON and back, and everything that is no plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.codec import PlanError
from planner.contracts import Lane, LayerRun, LayerSwap, Placement, Stored, SwapPlan, Tier, Workload
from planner.hardware.contracts import Disks, Hardware
from planner.plan import NoPlan, Plan, Predictions

HARDWARE = Hardware(
    device="some gpu",
    gpus=8,
    device_bytes=80 * 10**9,
    peak_flops_per_s={"bfloat16": 312e12},
    device_bytes_per_s=2e12,
    d2h_bytes_per_s=32e9,
    h2d_bytes_per_s=32e9,
    host_bytes=2 * 10**12,
    disks=Disks(count=8, size_bytes=7 * 10**12, write_bytes_per_s=6e9, read_bytes_per_s=6e9),
)
WORKLOAD = Workload(
    model="some/model",
    layers=(LayerRun(layer_class="Local", count=2), LayerRun(layer_class="Global", count=1)),
    parameters=8_030_261_248,
    tokens=1_000_003,
    ranks=8,
    sequence_parallel=8,
    zero=3,
)
SWAP = SwapPlan(
    tile_tokens=8192,
    in_flight_bytes=1 << 30,
    layers=(
        LayerSwap(tiles={Placement.HOST: 3, Placement.RECOMPUTE: 13}, x=Tier.HOST, o=Tier.SSD),
        LayerSwap(tiles={Placement.SSD: 16}, x=Tier.SSD, o=Tier.SSD),
        LayerSwap(tiles={Placement.KEEP: 16}),
    ),
)
PREDICTIONS = Predictions(
    step_s=612.25,
    compute_s=600.0,
    recompute_s=12.0,
    exposed_s={Lane.D2H: 0.25, Lane.SSD_READ: 0.0},
    mfu=0.523,
    tokens_per_s=1712.7,
    peak_bytes={Tier.DEVICE: 79 * 10**9, Tier.HOST: 10**11, Tier.SSD: 10**12},
    moved_bytes={Lane.D2H: 10**12},
    ssd_written_bytes_per_step=10**11,
    binding=("device memory",),
    longest_tokens=2_097_152,
)
PLAN = Plan(workload=WORKLOAD, hardware=HARDWARE, swap=SWAP, predictions=PREDICTIONS)


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize("stored", Stored)
def test_what_is_stored_for_attention_comes_back(stored: Stored) -> None:
    plan = replace(PLAN, swap=replace(SWAP, stored=stored))
    assert json.loads(plan.to_json())["swap"]["stored"] == stored.value
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_from_before_there_was_a_choice_stores_nothing_more() -> None:
    data = json.loads(PLAN.to_json())
    del data["swap"]["stored"]
    assert Plan.from_json(json.dumps(data)).swap.stored is Stored.BEFORE


def test_what_only_ranks_exchange_cannot_be_stored_alone() -> None:
    swap = replace(SWAP, stored=Stored.AFTER)
    with pytest.raises(ValueError, match="stored is after: takes before where no ranks share"):
        replace(PLAN, workload=replace(WORKLOAD, sequence_parallel=1), swap=swap)


def test_what_is_where_there_is_nothing_is_refused() -> None:
    no_disk = replace(HARDWARE, disks=None)
    kept = replace(SWAP, layers=SWAP.layers[2:] * 3)
    peaks = replace(PREDICTIONS, peak_bytes={Tier.DEVICE: 1, Tier.SSD: 0})
    plan = replace(PLAN, hardware=no_disk, swap=kept, predictions=peaks)
    with pytest.raises(ValueError, match=r"^workload\.offload_optimizer is ssd: takes hardware"):
        replace(plan, workload=replace(WORKLOAD, offload_optimizer="ssd"))
    with pytest.raises(ValueError, match=r"^zero is 3: takes 0 where ranks is 1$"):
        replace(WORKLOAD, ranks=1, sequence_parallel=1)


def test_a_plan_comes_back_from_a_file(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN


@given(
    tokens=st.integers(1, 1 << 40),
    step_s=st.floats(0, 1e12, exclude_min=True),
    counts=st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any),
    binding=st.lists(st.text(), max_size=3),
)
def test_any_plan_comes_back(
    tokens: int, step_s: float, counts: list[int], binding: list[str]
) -> None:
    layer = LayerSwap(tiles=dict(zip(Placement, counts, strict=True)), x=Tier.SSD)
    plan = replace(
        PLAN,
        workload=replace(WORKLOAD, tokens=tokens),
        swap=replace(SWAP, layers=(layer,) * 3),
        predictions=replace(PREDICTIONS, step_s=step_s, binding=tuple(binding)),
    )
    assert Plan.from_json(plan.to_json()) == plan


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def damage(data: Any) -> None:
        for name in path[:-1]:
            data = data[name]
        data[path[-1]] = to

    return damage


def _without(*path: str | int) -> Callable[[Any], None]:
    def damage(data: Any) -> None:
        for name in path[:-1]:
            data = data[name]
        del data[path[-1]]

    return damage


DAMAGE: list[tuple[Callable[[Any], None], str]] = [
    (_without("memo_plan"), "no 'memo_plan'"),
    (_set("memo_plan", to=2), "memo_plan is 2"),
    (_set("memo_plan", to="1"), "memo_plan is '1'"),
    (_set("memo_plan", to=True), "memo_plan is True"),
    (_without("swap"), "plan.swap is missing"),
    (_set("surprise", to=1), "plan.surprise is no field"),
    (_set("swap", to=[]), "plan.swap is []: takes an object"),
    (_set("workload", "tokens", to=0), "plan.workload.tokens is 0: takes 1 or more"),
    (_set("workload", "tokens", to=1.5), "plan.workload.tokens is 1.5: takes a whole number"),
    (_set("workload", "tokens", to=True), "plan.workload.tokens is True"),
    (_set("workload", "tokens", to="1M"), "plan.workload.tokens is '1M'"),
    (_set("workload", "tokens", to=None), "plan.workload.tokens is None"),
    (_set("workload", "zero", to=4), "plan.workload.zero is 4: takes one of 0, 1, 2, 3"),
    (_set("workload", "zero", to=True), "plan.workload.zero is True"),
    (_set("workload", "train", to="half"), "plan.workload.train is 'half'"),
    (_set("workload", "sequence_parallel", to=3), "plan.workload.sequence_parallel is 3"),
    (_set("workload", "layers", to=[]), "plan.workload.layers is empty"),
    (_set("workload", "layers", to={}), "plan.workload.layers is {}: takes a list"),
    (_set("workload", "layers", 1, "count", to=-1), "plan.workload.layers[1].count is -1"),
    (_set("workload", "layers", 0, "count", to=9), "plan.swap.layers has 3: takes 10"),
    (_without("workload", "layers", 0, "count"), "plan.workload.layers[0].count is missing"),
    (_set("swap", "layers", 2, "tiles", to={}), "plan.swap.layers[2].tiles is without a tile"),
    (_set("swap", "layers", 2, "tiles", to={"keep": 15}), "plan.swap.layers[2].tiles add up to 15"),
    (_set("swap", "layers", 0, "tiles", "host", to=-3), "plan.swap.layers[0].tiles.host is -3"),
    (_set("swap", "layers", 0, "tiles", "disk", to=3), "layers[0].tiles, name is 'disk'"),
    (_set("swap", "layers", 1, "x", to="recompute"), "plan.swap.layers[1].x is 'recompute'"),
    (_set("swap", "in_flight_bytes", to=-1), "plan.swap.in_flight_bytes is -1"),
    (_set("predictions", "step_s", to="long"), "plan.predictions.step_s is 'long': takes a number"),
    (_set("predictions", "step_s", to=0), "plan.predictions.step_s is 0.0: takes seconds above 0"),
    (_set("predictions", "peak_bytes", to={}), "plan.predictions.peak_bytes is without device"),
    (_without("predictions", "peak_bytes", "host"), "predictions.peak_bytes is without host"),
    (_without("predictions", "peak_bytes", "ssd"), "predictions.peak_bytes is without ssd"),
    (
        _set("predictions", "peak_bytes", "device", to=80 * 10**9 + 1),
        "plan.predictions.peak_bytes.device is 80000000001: takes 80000000000 at most",
    ),
    (
        _set("predictions", "peak_bytes", "host", to=25 * 10**10 + 1),
        "plan.predictions.peak_bytes.host is 250000000001: takes 250000000000 at most",
    ),
    (
        _set("predictions", "peak_bytes", "ssd", to=7 * 10**12 + 1),
        "plan.predictions.peak_bytes.ssd is 7000000000001: takes 7000000000000 at most",
    ),
    (_set("predictions", "mfu", to=-0.5), "plan.predictions.mfu is -0.5"),
    (_set("predictions", "binding", to=[1]), "plan.predictions.binding[0] is 1: takes a string"),
    (_set("predictions", "exposed_s", "d2h", to=-1), "plan.predictions.exposed_s.d2h is -1"),
    (_set("hardware", "device_bytes", to=0), "plan.hardware.device_bytes is 0"),
    (_set("hardware", "gpus", to=4), "plan.hardware.gpus is 4: takes 8, as workload.ranks"),
    (_set("hardware", "disks", to=None), "plan.swap.layers[0] uses the ssd: takes hardware.disks"),
    (_set("hardware", "disks", "count", to=0), "plan.hardware.disks.count is 0"),
    (_set("hardware", "peak_flops_per_s", "bfloat16", to=0), "plan.hardware.peak_flops_per_s"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE, ids=[says for _, says in DAMAGE])
def test_what_is_no_plan_is_refused_with_the_field(
    damage: Callable[[Any], None], says: str
) -> None:
    data = json.loads(PLAN.to_json())
    damage(data)
    with pytest.raises(PlanError) as caught:
        Plan.from_json(json.dumps(data))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("null", "no plan"),
        ("[]", "no plan"),
        ('{"memo_plan": 1, "memo_plan": 1}', "'memo_plan' occurs twice"),
        ('{"memo_plan": 1, "workload": NaN}', "NaN is no JSON number"),
        ('{"memo_plan": 1, "workload": -Infinity}', "-Infinity is no JSON number"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_json_is_refused(text: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("was", "said", "says"),
    [
        ('"step_s": 612.25', '"step_s": 1' + "0" * 309, r"plan\.predictions\.step_s is 1000"),
        ('"device_bytes": 80000000000', '"device_bytes": 1' + "0" * 309, "device_bytes is 1000"),
        ('"device_bytes": 80000000000', '"device_bytes": 1' + "0" * 30, "takes a number above 0"),
        ('"host_bytes": 2000000000000', '"host_bytes": 1' + "0" * 4300, "not JSON"),
    ],
)
def test_a_number_that_is_too_large_is_refused(was: str, said: str, says: str) -> None:
    assert was in PLAN.to_json()
    with pytest.raises(PlanError, match=says):
        Plan.from_json(PLAN.to_json().replace(was, said))


def test_a_number_that_is_none_is_refused() -> None:
    text = PLAN.to_json().replace('"step_s": 612.25', '"step_s": 1e999')
    with pytest.raises(PlanError, match=r"plan\.predictions\.step_s is inf: takes a number"):
        Plan.from_json(text)


REQUIRED = [
    (section, field.name)
    for section, kind in {
        "workload": Workload,
        "hardware": Hardware,
        "swap": SwapPlan,
        "predictions": Predictions,
    }.items()
    for field in fields(kind)
    if field.default is MISSING and field.default_factory is MISSING
]


@pytest.mark.parametrize(("section", "name"), REQUIRED)
def test_every_field_without_a_default_is_missed(section: str, name: str) -> None:
    data = json.loads(PLAN.to_json())
    del data[section][name]
    with pytest.raises(PlanError, match=rf"^plan\.{section}\.{name} is missing$"):
        Plan.from_json(json.dumps(data))


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"other\.json"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 1_000_004}, "tokens is 1000004, planned was 1000003"),
        ({"parameters": 1}, "parameters is 1, planned was 8030261248"),
        ({"batch": 2}, "batch is 2, planned was 1"),
        ({"dtype": "float32"}, "dtype is float32, planned was bfloat16"),
        ({"train": "lora"}, "train is lora, planned was full"),
        ({"zero": 2}, "zero is 2, planned was 3"),
        ({"sequence_parallel": 4}, "sequence_parallel is 4, planned was 8"),
        ({"ranks": 16}, "ranks is 16, planned was 8"),
        ({"offload_optimizer": "host"}, "offload_optimizer is host, planned was none"),
        (
            {"layers": (LayerRun(layer_class="Local", count=3),)},
            "layers is 3 x Local, planned was 2 x Local + 1 x Global",
        ),
    ],
)
def test_a_plan_for_something_else_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as caught:
        PLAN.check(replace(WORKLOAD, **changes))
    assert says in str(caught.value)


def test_all_differences_are_told_at_once() -> None:
    with pytest.raises(PlanError, match=r"tokens is 5, .*; zero is 0, "):
        PLAN.check(replace(WORKLOAD, tokens=5, zero=0))


def test_a_plan_serves_its_workload_under_another_name() -> None:
    PLAN.check(WORKLOAD)
    PLAN.check(replace(WORKLOAD, model="/models/mine"))


def test_tokens_are_counted_over_ranks() -> None:
    workload = replace(WORKLOAD, ranks=16, batch=3)
    assert workload.step_tokens == 1_000_003 * 3 * 2


def test_budgets_that_would_help_bind() -> None:
    missing = {Tier.DEVICE: None, Tier.HOST: 10**9}
    assert NoPlan(workload=WORKLOAD, hardware=HARDWARE, missing_bytes=missing).binding == (
        Tier.HOST,
    )
