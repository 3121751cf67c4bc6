"""Places of model states, their bytes, and the optimizer's time, computed by hand."""

from __future__ import annotations

import pytest

from memo.planning.costing import Costing, traced
from memo.planning.states import Optimizer, StateChoice, resident_bytes, state_choices, states_of
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
    assert seconds(3, "ssd") == pytest.approx(on_host + 2 * 48e9 / 1e9)
    assert seconds(0, "host") == pytest.approx(16e9 / 4e9 + 2 * 8e9 / 2e9)


def test_adapters_are_what_is_trained() -> None:
    asked = request(machine(), train="lora", config=llama())
    trace = traced(asked)
    assert 0 < trace.trainable < trace.parameters / 5
    states = states_of(asked, trace, StateChoice(0, "none"))
    assert states.optimizer_bytes == 12 * trace.trainable
