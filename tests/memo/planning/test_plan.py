"""Plans of small models, against sums by hand and against their own budgets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import pytest

from memo.doctor.contracts import ComputeRate, HostMemory, Machine
from memo.planning import choosing, longest, public
from memo.planning import node as node_module
from memo.planning.choosing import Case, tiles_of
from memo.planning.figures import wear_of
from memo.planning.longest import find_longest
from memo.planning.making import Outcome
from memo.planning.node import NodeArguments, find_node
from memo.planning.public import plan
from offload import MemoError
from planner.codec import PlanError
from planner.contracts import Placement, Tier, Workload
from planner.hardware import Hardware
from planner.plan import NoPlan, Plan, Predictions
from planner.swap.shares import budgets_of
from tests.memo.planning.common import (
    FFN,
    GB,
    HEADS,
    HIDDEN,
    LAYERS,
    MIB,
    SHARED,
    VOCABULARY,
    disks,
    llama,
    machine,
    planned,
    request,
)

TOKENS = 3000
ROOMY = 4 * GB


def _plan(outcome: Outcome) -> Plan:
    assert isinstance(outcome.result, Plan)
    return outcome.result


def _no_plan(outcome: Outcome) -> NoPlan:
    assert isinstance(outcome.result, NoPlan)
    return outcome.result


def _model_flops() -> float:
    """Forward and twice as much backward: matmuls, and both of attention's over half of all pairs
    with the diagonal.
    """
    keys = HIDDEN * SHARED // HEADS
    weights = HIDDEN * (2 * HIDDEN + 2 * keys) + 3 * HIDDEN * FFN
    attention = 2 * 2 * HIDDEN * TOKENS * (TOKENS + 1) / 2
    forward = LAYERS * (2 * TOKENS * weights + attention) + 2 * TOKENS * HIDDEN * VOCABULARY
    return 3 * forward


def test_where_all_fits_all_is_kept_and_flops_are_the_models() -> None:
    found = _plan(planned(machine(device_bytes=ROOMY)))
    told = found.predictions
    assert all(layer.share(Placement.KEEP) == 1 for layer in found.swap.layers)
    assert all(layer.x is layer.o is Tier.DEVICE for layer in found.swap.layers)
    assert told.recompute_s == 0
    assert sum(told.exposed_s.values()) == 0
    assert told.mfu * told.step_s * 1e12 == pytest.approx(_model_flops(), rel=1e-3)
    assert told.tokens_per_s == pytest.approx(TOKENS / told.step_s)
    # A tile's `post` begins with `pre` once more; attention's backward is 2.5 times its forward.
    assert _model_flops() / 1e12 < told.step_s < 1.4 * _model_flops() / 1e12
    assert told.binding == ("compute",)


@pytest.mark.parametrize(
    ("place", "expected"), [("none", "compute"), ("host", "PCIe"), ("ssd", "SSD speed")]
)
def test_an_optimizer_off_the_device_binds_by_its_copies(place: str, expected: str) -> None:
    """And the step is shorter with more of what is told."""

    def made(rate: float) -> Predictions:
        pcie = {"d2h_bytes_per_s": 2 * rate, "h2d_bytes_per_s": 2 * rate}
        ssd = disks(write_bytes_per_s=rate, read_bytes_per_s=rate)
        hardware = machine(device_bytes=ROOMY, host_bytes=10**10, disks=ssd, **pcie)
        return _plan(planned(hardware, tokens=300, offload_optimizer=place)).predictions

    told, faster = made(1e9), made(4e9)
    assert told.binding[0] == expected
    assert (faster.step_s < 0.9 * told.step_s) is (place != "none")


def _states(found: Plan) -> int:
    return 14 * found.workload.parameters  # weights and optimizer; gradients come with backward


def test_less_memory_takes_more_time_and_every_budget_is_kept() -> None:
    roomy = _plan(planned(machine(device_bytes=ROOMY)))
    least = _states(roomy)
    last_s = roomy.predictions.step_s
    for more in (90, 60, 40):
        hardware = machine(device_bytes=least + more * MIB)
        found = _plan(planned(hardware))
        budgets = budgets_of(hardware)
        for tier, peak in found.predictions.peak_bytes.items():
            assert peak <= budgets.of(tier)
        assert found.predictions.step_s >= last_s * (1 - 1e-3)
        last_s = found.predictions.step_s
    assert last_s > roomy.predictions.step_s


def test_what_is_missing_makes_it_fit() -> None:
    tight = machine(device_bytes=60 * 10**6, host_bytes=MIB)
    none = _no_plan(planned(tight))
    assert none.binding == (Tier.DEVICE,) or Tier.DEVICE in none.binding
    missing = none.missing_bytes[Tier.DEVICE]
    assert missing is not None
    assert missing > 0
    enough = replace(tight, device_bytes=tight.device_bytes + missing)
    less = replace(tight, device_bytes=tight.device_bytes + missing // 2)
    _plan(planned(enough))
    _no_plan(planned(less))


@pytest.mark.parametrize("device_bytes", [95 * 10**6, 140 * 10**6])
def test_the_longest_sequence_fits_and_a_longer_one_does_not(device_bytes: int) -> None:
    hardware = machine(device_bytes=device_bytes, host_bytes=64 * MIB)
    found = planned(hardware, find_longest=True).result
    longest = (found.predictions if isinstance(found, Plan) else found).longest_tokens
    assert longest is not None
    assert (longest >= TOKENS) == isinstance(found, Plan)
    if longest:
        _plan(planned(hardware, tokens=longest))
    _no_plan(planned(hardware, tokens=round(1.1 * longest) + 128))


def test_the_optimizer_leaves_the_device_only_if_it_must() -> None:
    roomy = _plan(planned(machine(device_bytes=ROOMY)))
    assert roomy.workload.offload_optimizer == "none"
    tight = machine(device_bytes=_states(roomy) - 10 * MIB)
    found = _plan(planned(tight))
    assert found.workload.offload_optimizer == "host"
    assert any("optimizer's states lie on the host" in note for note in found.notes)
    assert found.predictions.peak_bytes[Tier.HOST] >= 12 * found.workload.parameters


def test_the_optimizers_writes_are_among_the_ssds() -> None:
    hardware = machine(device_bytes=ROOMY, disks=disks())
    found = _plan(planned(hardware, offload_optimizer="ssd"))
    written = found.predictions.ssd_written_bytes_per_step
    assert written == 12 * found.workload.parameters
    assert found.predictions.peak_bytes[Tier.SSD] == 12 * found.workload.parameters


def test_four_gpus_share_a_sequence_and_their_states() -> None:
    hardware = machine(device_bytes=ROOMY, gpus=4, link_bytes_per_s=1e11)
    alone = _plan(planned(machine(device_bytes=ROOMY)))
    found = _plan(planned(hardware, sequence_parallel=4))
    assert found.workload.zero in (1, 2, 3)
    assert found.predictions.step_s < alone.predictions.step_s / 3
    peaks = (found.predictions.peak_bytes, alone.predictions.peak_bytes)
    assert peaks[0][Tier.DEVICE] < peaks[1][Tier.DEVICE] / 2


def test_the_fastest_stage_is_taken() -> None:
    hardware = machine(device_bytes=ROOMY, gpus=4, link_bytes_per_s=1e8)
    steps = {
        zero: _plan(planned(hardware, sequence_parallel=4, zero=zero)).predictions.step_s
        for zero in (1, 2, 3)
    }
    assert max(steps.values()) > 1.05 * min(steps.values())
    found = _plan(planned(hardware, sequence_parallel=4))
    assert found.predictions.step_s == pytest.approx(min(steps.values()))


def test_the_arena_is_told_beside_what_pytorch_reserves() -> None:
    found = _plan(planned(machine(device_bytes=ROOMY), lay_out=True))
    told = found.predictions
    assert told.arena_bytes is not None
    assert told.arena_lower_bound_bytes is not None
    assert told.reserved_bytes is not None
    assert told.arena_lower_bound_bytes <= told.arena_bytes <= 1.05 * told.arena_lower_bound_bytes
    assert told.reserved_bytes >= told.arena_lower_bound_bytes
    least = told.peak_bytes[Tier.DEVICE] - _states(found)
    assert told.arena_bytes == pytest.approx(least, rel=0.15)


def test_layers_that_run_whole_are_planned_and_said() -> None:
    from tests.memo.tracing.common import config_of

    hybrid = config_of("lfm2", num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2)
    found = _plan(planned(machine(device_bytes=ROOMY), config=hybrid))
    counts = [layer.tile_count for layer in found.swap.layers]
    assert counts == [1, 12, 1, 12]
    assert found.swap.tile_tokens == 256
    assert any("run whole" in note for note in found.notes)


def test_a_plan_goes_to_json_and_back_and_knows_its_workload() -> None:
    found = _plan(planned(machine(device_bytes=ROOMY)))
    assert Plan.from_json(found.to_json()) == found
    found.check(found.workload)
    other: Workload = replace(found.workload, tokens=TOKENS + 1)
    with pytest.raises(PlanError, match="tokens is 3001, planned was 3000"):
        found.check(other)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokens": 0}, "tokens is 0"),
    ({"tokens": -5}, "tokens is -5"),
    ({"tokens": "1.5M"}, "tokens is '1.5M'.*write 1536K"),
    ({"tokens": True}, "tokens is True"),
    ({"tokens": "9999999999G"}, r"tokens is 10737418238926258176: .* 1 x 10737418238926258176"),
    ({"tokens": 1 << 27}, "tokens is 134217728: takes 67,108,864 of a step on each GPU at most"),
    ({"batch": 1 << 60}, "tokens is 4096: .* those are 1152921504606846976 x 4096"),
    ({"tokens": "1M", "tile_tokens": 1}, r"tile_tokens is 1: .* and those are 6,291,456"),
    ({"gpus": 0}, "gpus is 0"),
    ({"gpus": 10**12}, "gpus is 1000000000000: takes a whole number from 1 to 1048576"),
    ({"gpu": "h100-96gb"}, "gpu is 'h100-96gb'.*did you mean h100-80gb"),
    ({"host_memory": "0GB"}, "host_memory is '0GB'"),
    ({"host_memory": None}, "host_memory is not given"),
    ({"gpu_memory": 0}, "gpu_memory is '0'"),
    ({"ssd": "8x0TB@6GB/s"}, "ssd is '8x0TB@6GB/s'"),
    ({"ssd": "lots"}, "ssd is 'lots'"),
    ({"zero": 4}, "zero is 4"),
    ({"zero": 3}, "zero is 3: one GPU has no other"),
    ({"train": "half"}, "train is 'half': takes full or lora"),
    ({"offload_optimizer": "ssd"}, "offload_optimizer is 'ssd', and there is none"),
    ({"offload_optimizer": "tape"}, "offload_optimizer is 'tape'"),
    ({"gpus": 4, "sequence_parallel": 3}, "sequence_parallel is 3: takes a divisor of gpus"),
    ({"gpus": 8, "tokens": 7, "sequence_parallel": 8}, "tokens is 7: 8 GPUs that share a sequence"),
    ({"gpus": 2, "sequence_parallel": 0}, "sequence_parallel is 0"),
    ({"gpus": True}, "gpus is True"),
    ({"step_tolerance": -0.1}, "step_tolerance is -0.1"),
    ({"step_tolerance": 1.0}, "step_tolerance is 1.0"),
    ({"endurance_tbw": 100.0}, "endurance_tbw is given, and no ssd"),
    ({"endurance_tbw": 0.0, "ssd": "1TB@1GB/s"}, "endurance_tbw is 0.0"),
    ({"endurance_tbw": 1e300, "ssd": "1TB@1GB/s"}, r"endurance_tbw is 1e\+300"),
    ({"host_memory": "9" * 310}, "host_memory is '9"),
    ({"pcie": "9" * 310 + "B/s"}, "pcie is '9"),
    ({"pcie": "32Gb/s"}, "pcie is '32Gb/s'.*capital B"),
    ({"batch": 0}, "batch is 0"),
    ({"tile_tokens": 0}, "tile_tokens is 0"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"gpu": "v100"}, "dtype is 'bfloat16': v100-32gb has a rate for float16"),
    ({"hardware": machine()}, "gpu is given beside hardware"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "tokens": 4096,
        "gpu": "h100-80gb",
        "host_memory": "1TB",
        **changes,
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        plan(llama(), **arguments)


PLAIN: list[tuple[dict[str, Any], str]] = [
    ({"tokens": -1}, "tokens is -1"),
    ({"tokens": 1.5}, "tokens is 1.5"),
    ({"train": "half"}, "train is 'half'"),
    ({"zero": 4}, "zero is 4"),
    ({"zero": True}, "zero is True"),
    ({"offload_optimizer": "tape"}, "offload_optimizer is 'tape'"),
    ({"sequence_parallel": 0}, "sequence_parallel is 0"),
    ({"batch": 0}, "batch is 0"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"tile_tokens": 0}, "tile_tokens is 0"),
    ({"step_tolerance": 1.0}, "step_tolerance is 1.0"),
]


@pytest.mark.parametrize(("changes", "message"), PLAIN)
def test_plain_values_are_checked_before_the_model_and_the_machine(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(*_: object) -> NoReturn:
        raise AssertionError("was looked up")

    monkeypatch.setattr(public, "named_config", unasked)
    monkeypatch.setattr(public, "find_node", unasked)
    arguments: dict[str, Any] = {"tokens": 4096, **changes}
    with pytest.raises(ValueError, match=f"^{message}"):
        plan("any/model", **arguments)


@pytest.mark.parametrize("name", ["host_memory", "gpu_memory", "ssd", "pcie"])
def test_sizes_are_read_before_this_machine_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked() -> NoReturn:
        raise AssertionError("was measured")

    monkeypatch.setattr(node_module, "probe_machine", unasked)
    given: dict[str, Any] = {name: "lots"}
    with pytest.raises(ValueError, match=f"^{name} is 'lots'"):
        plan(llama(), tokens=4096, **given)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="model '/nowhere/lama': there is no such file"):
        plan("/nowhere/lama", tokens=4096, gpu="h100", host_memory="1TB")


def test_described_hardware_is_taken_as_it_is() -> None:
    hardware: Hardware = machine(device_bytes=ROOMY)
    found = plan(
        llama(), tokens="3K", hardware=hardware, tile_tokens=256, find_longest=False, lay_out=False
    )
    assert isinstance(found, Plan)
    assert found.hardware == hardware
    assert found.workload.tokens == 3 * 1024


def test_nothing_is_written_to_save_less_than_the_tolerance() -> None:
    """A host that is too small for all, and a disk that would take the rest."""
    hardware = machine(
        device_bytes=85 * 10**6,
        host_bytes=8 * MIB,
        d2h_bytes_per_s=4e9,
        h2d_bytes_per_s=4e9,
        disks=disks(write_bytes_per_s=4e9, read_bytes_per_s=4e9),
    )
    fast, sober = (
        _plan(planned(hardware, step_tolerance=tolerance)).predictions for tolerance in (0.0, 0.3)
    )
    assert fast.ssd_written_bytes_per_step > sober.ssd_written_bytes_per_step
    assert fast.step_s < sober.step_s <= 1.31 * fast.step_s


def test_disks_last_as_long_as_what_is_written_lets_them() -> None:
    found = plan(
        llama(),
        tokens=3000,
        gpu="l4",
        host_memory="64GB",
        ssd="2x1TB@1GB/s",
        endurance_tbw=100.0,
        offload_optimizer="ssd",
        find_longest=False,
        lay_out=False,
    )
    assert isinstance(found, Plan)
    wear = wear_of(found)
    steps_a_day = 86_400 / found.predictions.step_s
    assert wear.bytes_per_day == pytest.approx(12 * found.workload.parameters * steps_a_day)
    assert wear.days == pytest.approx(100e12 / wear.bytes_per_day)


PROCESSOR = Machine(
    processor="a test's",
    cores=2,
    host=HostMemory(installed_bytes=16 * GB, available_bytes=8 * GB),
    memlock_bytes=None,
    huge_pages=None,
    versions={},
    memory_bytes_per_s=1e10,
    compute=(
        ComputeRate(
            dtype="bfloat16",
            matmul_flops_per_s=1e11,
            attention_forward_flops_per_s=5e10,
            attention_backward_flops_per_s=4e10,
        ),
    ),
)


def test_without_a_gpu_this_machine_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "probe_machine", lambda: PROCESSOR)
    found = plan(llama(), tokens=3000, find_longest=False, lay_out=False)
    assert isinstance(found, Plan)
    assert found.hardware.device == "a test's"
    assert (found.hardware.device_bytes, found.hardware.host_bytes) == (8 * GB - 1, 1)
    with pytest.raises(ValueError, match=r"gpus is 2, and this machine has 0: .* name its gpu"):
        plan(llama(), tokens=3000, gpus=2)
    with pytest.raises(MemoError, match="computes in float32 is not known"):
        plan(llama(), tokens=3000, dtype="float32")
    less = plan(llama(), tokens=3000, host_memory="6GB", gpu_memory="5GB", lay_out=False)
    assert (less.hardware.host_bytes, less.hardware.device_bytes) == (6 * GB, 5 * GB)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (8 * GB - 1, 1)),
        ({"ssd": "1TB@1GB/s"}, (7 * GB, GB)),
        ({"host_memory": "3GB"}, (5 * GB, 3 * GB)),
        ({"gpu_memory": "6GB"}, (6 * GB, 1)),
        ({"gpu_memory": "7500MB", "ssd": "1TB@1GB/s"}, (7500 * 10**6, 500 * 10**6)),
        ({"gpu_memory": "2GB", "ssd": "1TB@1GB/s"}, (2 * GB, GB)),
    ],
)
def test_a_processors_memory_is_counted_once(
    said: dict[str, Any], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "probe_machine", lambda: PROCESSOR)
    hardware = find_node(_said(**said)).hardware
    assert (hardware.device_bytes, hardware.host_bytes) == expected
    assert hardware.device_bytes + hardware.host_bytes <= PROCESSOR.host.available_bytes


def test_a_host_that_leaves_the_processor_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_module, "probe_machine", lambda: PROCESSOR)
    with pytest.raises(ValueError, match=r"^host_memory is 8000000000 bytes: without a GPU"):
        find_node(_said(host_memory="8GB"))


def _said(**changes: Any) -> NodeArguments:
    nothing = dict.fromkeys(("gpu", "gpu_memory", "host_memory", "ssd", "pcie", "hardware"))
    arguments: dict[str, Any] = {"gpus": 1, "dtype": "bfloat16", **nothing, **changes}
    return NodeArguments(**arguments)


def test_tiles_are_not_made_smaller_or_longer_sequences_sought_beyond_what_can_be_simulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = llama(num_hidden_layers=2)
    asked = request(machine(), config=config, tile_tokens=None, tokens=1 << 12)
    case = Case(asked)
    every = list(case.traces())
    most = tiles_of(every[-1]) - 1
    monkeypatch.setattr(choosing, "MOST_TILES", most)
    assert list(case.traces()) == every[:-1]
    monkeypatch.setattr(longest, "MOST_TILES", most)
    told: list[int] = []

    def looked(*_: object, most_tokens: int, **__: object) -> int:
        told.append(most_tokens)
        return 0

    monkeypatch.setattr(longest, "longest_tokens", looked)
    assert find_longest(case, fits=True) == asked.tokens
    times = most // tiles_of(case.trace())
    assert 1 < times < longest.MOST
    assert told == [times * asked.tokens]
