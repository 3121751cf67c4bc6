"""Costs at a length that was not traced are those of a trace of it."""

from __future__ import annotations

import dataclasses

import pytest

from memo.planning.costing import Costing, traced
from memo.planning.lengths import Lengths, confirmed
from memo.planning.states import StateChoice
from planner.swap.contracts import StepCost
from tests.memo.planning.common import machine, request

TILE = 256


def _cost(tokens: int) -> StepCost:
    asked = request(machine(), tokens=tokens)
    return Costing(asked, StateChoice(0, "none")).cost(traced(asked))


def _numbers(value: object, path: str = "") -> dict[str, float]:
    """All numbers in a dataclass, by their path."""
    if dataclasses.is_dataclass(value):
        fields = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, dict):
        fields = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, tuple):
        fields = [(str(index), item) for index, item in enumerate(value[:2])]
    else:
        return {path: float(value)} if isinstance(value, int | float) else {}
    return {k: v for name, item in fields for k, v in _numbers(item, f"{path}.{name}").items()}


@pytest.mark.parametrize("tokens", [5000, 8192, 13_000, 33_333])
def test_costs_between_and_beyond_two_lengths(tokens: int) -> None:
    lengths = Lengths(_cost(6000), _cost(12_000), 6000, 12_000)
    expected, found = _numbers(_cost(tokens)), _numbers(lengths.at(tokens))
    lasts = {name: value for name, value in expected.items() if name.endswith(".last_bytes")}
    assert expected.keys() - found.keys() == lasts.keys()
    for name, value in lasts.items():  # told as that of a full tile, which is as much or more
        full = found[name.replace(".last_bytes", ".post_bytes")]
        assert value <= 1.03 * full, name
        del expected[name]
    for name, value in expected.items():
        tolerance = 0.03 if name.endswith("_live_bytes") or "_live." in name else 0.01
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-6), name


def test_an_answer_is_confirmed_or_made_shorter() -> None:
    assert confirmed(100, lambda tokens: tokens <= 100, unit_tokens=10) == 100
    assert confirmed(100, lambda tokens: tokens <= 85, unit_tokens=10) == 80
    assert confirmed(100, lambda tokens: tokens <= 20, unit_tokens=10, tries=3) is None
    assert confirmed(10, lambda tokens: False, unit_tokens=10) is None
