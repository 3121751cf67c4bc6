"""Model states, against the figures of the ZeRO paper and counts by hand."""

from __future__ import annotations

from typing import Any

import pytest

from planner.trace.states import ParameterCounts, model_states

_GB = 1e9


@pytest.mark.parametrize(("zero", "expected_gb"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_papers_figures(zero: int, expected_gb: float) -> None:
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters, 64 ranks."""
    states = model_states(ParameterCounts(total=7_500_000_000), zero=zero, ranks=64)
    assert states.device_bytes / _GB == pytest.approx(expected_gb, abs=0.05)
    assert states.host_bytes == states.ssd_bytes == 0


def test_float32_needs_no_master_weights() -> None:
    states = model_states(ParameterCounts(total=10), dtype="float32")
    assert (states.weight_bytes, states.gradient_bytes, states.optimizer_bytes) == (40, 40, 80)


def test_a_share_is_rounded_up() -> None:
    states = model_states(ParameterCounts(total=10, largest_layer=4), zero=3, ranks=4)
    assert (states.weight_bytes, states.gradient_bytes, states.optimizer_bytes) == (6, 6, 36)
    assert states.gathered_bytes == 8


def test_lora_trains_its_adapter_only() -> None:
    states = model_states(ParameterCounts(total=1000, adapter=10), train="lora")
    assert (states.weight_bytes, states.gradient_bytes, states.optimizer_bytes) == (2000, 20, 120)


@pytest.mark.parametrize("place", ["host", "ssd"])
def test_an_offloaded_optimizer_takes_divided_gradients_along(place: Any) -> None:
    counts = ParameterCounts(total=100)
    first = model_states(counts, zero=1, ranks=4, offload_optimizer=place)
    assert (first.device_bytes, getattr(first, f"{place}_bytes")) == (400, 300)
    second = model_states(counts, zero=2, ranks=4, offload_optimizer=place)
    assert (second.device_bytes, getattr(second, f"{place}_bytes")) == (200, 350)
    assert first.host_bytes + first.ssd_bytes == 300, "nothing is elsewhere twice"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "some"}, "train is 'some': takes 'full' or 'lora'"),
        ({"train": "lora"}, "adapter is 0"),
        ({"zero": 4}, "zero is 4"),
        ({"ranks": 0}, "ranks is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"offload_optimizer": "disk"}, "offload_optimizer is 'disk'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_states(ParameterCounts(total=10), **arguments)


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match="total is 0"):
        ParameterCounts(total=0)
    with pytest.raises(ValueError, match="adapter is 11: takes 0 to total"):
        ParameterCounts(total=10, adapter=11)
