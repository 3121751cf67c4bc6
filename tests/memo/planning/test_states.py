"""Places of model states, their bytes, and the optimizer's time, computed by hand."""

from __future__ import annotations

import pytest
from rich.filesize import decimal

from memo.planning.costing import Costing, traced
from memo.planning.node import Node
from memo.planning.notes import notes_of
from memo.planning.states import Optimizer, StateChoice, resident_bytes, state_choices, states_of
from memo.tracing.runtime import DeviceKind
from planner.contracts import Tier
from planner.trace import StepTrace
from tests.memo.planning.common import GB, disks, llama, machine, request

FOUR = {"gpus": 4, "link_bytes_per_s": 1e10}


@pytest.fixture(scope="module")
def trace() -> StepTrace:
    return traced(request(machine()))


def test_on_one_gpu_nothing_is_divided_and_the_optimizer_moves_last() -> None:
    choices = list(state_choices(request(machine(disks=disks()))))
    places = [[(c.zero, c.offload_optimizer) for c in alike] for alike in choices]
    assert places == [[(0, "none")], [(0, "host")], [(0, "ssd")]]


def test_several_gpus_divide_and_what_was_asked_is_kept() -> None:
    several = request(machine(**FOUR), sequence_parallel=4)
    assert [[c.zero for c in alike] for alike in state_choices(several)] == [[1, 2, 3], [1, 2, 3]]
    asked = request(machine(**FOUR), sequence_parallel=4, zero=2, offload_optimizer="host")
    assert list(state_choices(asked)) == [[StateChoice(2, "host")]]


def test_resident_bytes_of_stage_3_by_hand(trace: StepTrace) -> None:
    asked = request(machine(**FOUR), sequence_parallel=4)
    states = states_of(asked, trace, StateChoice(3, "host"))
    count = trace.parameters
    share = -(-count // 4)
    layer = 2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 700 + 2 * 256
    assert trace.layers[0].parameters == layer
    largest = max(layer, 1003 * 256)
    resident = resident_bytes(trace, states)
    others = trace.base_bytes - 2 * count
    assert resident[Tier.DEVICE] == others + 2 * share + 2 * largest
    assert resident[Tier.HOST] == 12 * share + 2 * share  # gradients leave as they are made
    assert Costing(asked, StateChoice(3, "host")).gradient_share(trace) == 0
    assert Costing(asked, StateChoice(2, "none")).gradient_share(trace) == pytest.approx(0.25, 1e-4)
    assert Costing(asked, StateChoice(1, "none")).gradient_share(trace) == 1


def test_optimizer_seconds_by_hand() -> None:
    node = machine(**FOUR, disks=disks())

    def seconds(zero: int, place: str) -> float:
        choice = StateChoice(zero, place)  # type: ignore[arg-type]
        return Optimizer(node, choice, 4 * GB, 4 * GB, 4, 2).seconds

    assert seconds(0, "none") == pytest.approx(4 * 28e9 / 1e15)
    assert seconds(3, "none") == pytest.approx(28e9 / 1e15)
    assert seconds(1, "none") == pytest.approx(28e9 / 1e15 + 0.75 * 8e9 / 1e10)
    on_host = 4e9 / 4e9 + 2 * 2e9 / 2e9
    assert seconds(3, "host") == pytest.approx(on_host)
    assert seconds(3, "ssd") == pytest.approx(on_host + 2 * 56e9 / 1e9)
    assert seconds(0, "host") == pytest.approx(16e9 / 4e9 + 2 * 8e9 / 2e9)


@pytest.mark.parametrize(
    ("zero", "dtype_bytes", "written"),
    [(0, 2, 12 * 4), (1, 2, 12), (2, 2, 14), (3, 2, 14), (0, 4, 8 * 4), (1, 4, 8), (3, 4, 12)],
)
def test_what_an_optimizer_on_the_ssd_writes_is_what_lies_there(
    zero: int, dtype_bytes: int, written: int
) -> None:
    """A parameter's bytes: master weight and two moments, or the moments alone in float32, and
    from stage 2 on the gradient.
    """
    node = machine(**FOUR, disks=disks())
    for place, expected in (("ssd", written * GB), ("host", 0), ("none", 0)):
        choice = StateChoice(zero, place)  # type: ignore[arg-type]
        optimizer = Optimizer(node, choice, 4 * GB, 4 * GB, 4, dtype_bytes)
        assert optimizer.written_bytes == optimizer.states.ssd_bytes == expected
    on_disk, on_host = (
        Optimizer(node, StateChoice(zero, place), 4 * GB, 4 * GB, 4, dtype_bytes)  # type: ignore[arg-type]
        for place in ("ssd", "host")
    )
    disk_s = on_disk.seconds - on_host.seconds
    assert disk_s == pytest.approx(2 * 4 * written)  # 1 GB/s, shared by 4 ranks


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_written_bytes_are_the_resident_ones(train: str, zero: int, dtype: str) -> None:
    four = machine(**FOUR, disks=disks())
    asked = request(four, sequence_parallel=4, train=train, dtype=dtype)
    trace, costing = traced(asked), Costing(asked, StateChoice(zero, "ssd"))  # type: ignore[arg-type]
    resident = resident_bytes(trace, states_of(asked, trace, costing.choice))
    assert costing.optimizer(trace).written_bytes == resident[Tier.SSD] > 0


def test_gradients_to_accumulate_are_told(trace: StepTrace) -> None:
    asked = request(machine(**FOUR), sequence_parallel=4)

    def told(zero: int, place: str) -> list[str]:
        costing = Costing(asked, StateChoice(zero, place))  # type: ignore[arg-type]
        return [note for note in notes_of(asked, trace, costing) if "accumulate" in note]

    whole, share = 2 * trace.parameters, 2 * -(-trace.parameters // 4)
    for zero, place, size in ((0, "none", whole), (1, "host", whole), (2, "none", share)):
        (note,) = told(zero, place)
        assert f"add {decimal(size)} to the device's peak" in note
    assert told(3, "host") == [], "they are not on the device"
    assert not any("accumulate" in note for note in notes_of(asked, trace, None))


@pytest.mark.parametrize("place", ["none", "host", "ssd"])
def test_an_optimizer_off_the_device_is_told_with_what_is_assumed(
    trace: StepTrace, place: str
) -> None:
    asked = request(machine(disks=disks()), offload_optimizer=place)
    costing = Costing(asked, StateChoice(0, place))  # type: ignore[arg-type]
    text = "\n".join(notes_of(asked, trace, costing))
    is_off = place != "none"
    assert (f"states get to the {place} by the engine" in text) is is_off
    assert ("assumed, not measured: the node's processors update 4e+09" in text) is is_off


def test_what_torchs_default_update_makes_is_told_where_it_does_not_fit(trace: StepTrace) -> None:
    """16-bit weights and gradients, float32 states, and once more a float32 variance."""
    more = 4 * trace.parameters
    enough = trace.base_bytes - 2 * trace.parameters + 16 * trace.parameters + more

    def told(device_bytes: int, place: str = "none", kind: DeviceKind = "cuda") -> bool:
        asked = request(machine(), node=Node(machine(device_bytes=device_bytes), kind))
        costing = Costing(asked, StateChoice(0, place))  # type: ignore[arg-type]
        return any(
            f"default makes {decimal(more)}" in note for note in notes_of(asked, trace, costing)
        )

    assert told(enough - 1)
    assert not told(enough)
    assert not told(enough - 1, "host")
    assert not told(enough - 1, kind="cpu"), "torch updates one weight at a time there"


def test_adapters_are_what_is_trained() -> None:
    asked = request(machine(), train="lora", config=llama())
    trace = traced(asked)
    assert 0 < trace.trainable < trace.parameters / 5
    states = states_of(asked, trace, StateChoice(0, "none"))
    assert states.optimizer_bytes == 12 * trace.trainable
