"""Plans of small models, against sums by hand and against their own budgets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memo.planning import plan
from memo.planning.making import Outcome
from planner.codec import PlanError
from planner.contracts import NoPlan, Placement, Plan, Tier, Workload
from planner.hardware import Hardware
from planner.swap.costs import budgets_of
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
    assert found.workload.local_tokens == TOKENS // 4
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
    ({"gpus": 0}, "gpus is 0"),
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
    ({"gpus": 8, "tokens": 7}, "tokens is 7: 8 GPUs that share a sequence"),
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


def test_an_unknown_model_is_refused_with_names_like_it() -> None:
    with pytest.raises(ValueError, match="model '/nowhere/lama'"):
        plan("/nowhere/lama", tokens=4096, gpu="h100", host_memory="1TB")


def test_described_hardware_is_taken_as_it_is() -> None:
    hardware: Hardware = machine(device_bytes=ROOMY)
    found = plan(
        llama(), tokens="3K", hardware=hardware, tile_tokens=256, find_longest=False, lay_out=False
    )
    assert isinstance(found, Plan)
    assert found.hardware == hardware
    assert found.workload.tokens == 3 * 1024
