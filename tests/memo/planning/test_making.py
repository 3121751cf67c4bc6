"""Plans whose layouts, or PyTorch's allocator, take more than the device has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memo.planning import making
from memo.planning.arena import Arena, lay_out
from memo.planning.making import LAYOUT_MARGIN_BYTES, Outcome
from memo.planning.node import Node
from memo.planning.reserved import SETTING, reserved_note, reserved_with
from planner.allocator import AllocatorConfig
from planner.contracts import NoPlan, Plan, Tier
from planner.hardware import Hardware
from planner.layout import Buffer, Problem
from tests.memo.planning.common import GB, MIB, machine, planned

STATES_BYTES = 14  # of a parameter
HIGHER_BYTES = 24 * MIB


class Higher(Arena):
    """A layout with a hole that no plan is without."""

    @property
    def height_bytes(self) -> int:
        return super().height_bytes + HIGHER_BYTES


def _higher(*arguments: Any, **named: Any) -> Arena:
    found = lay_out(*arguments, **named)
    return Higher(found.problem, found.solution, found.reserved_bytes)


def _tight(more_bytes: int) -> Hardware:
    roomy = planned(machine(device_bytes=4 * GB)).result
    return machine(device_bytes=STATES_BYTES * roomy.workload.parameters + more_bytes)


def _laid_out(hardware: Hardware, **changes: Any) -> Outcome:
    return planned(hardware, lay_out=True, offload_optimizer="none", **changes)


def test_a_layout_that_does_not_fit_is_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = _tight(40 * MIB)
    monkeypatch.setattr(making, "lay_out", _higher)
    assert isinstance(planned(tight, offload_optimizer="none").result, Plan)
    outcome = _laid_out(tight, find_longest=True)
    none = outcome.result
    assert isinstance(none, NoPlan)
    assert (outcome.schedule, outcome.arena, none.longest_tokens) == (None, None, None)
    assert none.binding == (Tier.DEVICE,)
    missing = none.missing_bytes[Tier.DEVICE]
    assert missing is not None
    excess = missing - LAYOUT_MARGIN_BYTES
    assert 0 < excess <= HIGHER_BYTES
    assert f"found that fits: {excess:,} bytes more" in none.notes[-1]
    enough = replace(tight, device_bytes=tight.device_bytes + missing)
    found = _laid_out(enough).result
    assert isinstance(found, Plan)
    assert found.predictions.arena_bytes is not None


def test_a_layout_that_is_higher_is_planned_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hole is off the device's bytes, not beside them."""
    hardware = _tight(150 * MIB)
    monkeypatch.setattr(making, "lay_out", _higher)
    found = _laid_out(hardware).result
    assert isinstance(found, Plan)
    told = found.predictions
    states = STATES_BYTES * found.workload.parameters
    assert told.arena_bytes is not None
    assert states + told.arena_bytes <= hardware.device_bytes


GROWING = Problem(
    tuple(
        Buffer(str(number), number, number + 1, size * MIB)
        for number, size in enumerate((30, 42, 54))
    )
)
"""Each needs a segment of its own by default, as none fits in the one before; a segment that grows,
20 MiB at a time, holds one after another in 60 MiB."""


def test_what_is_reserved_is_by_the_setting() -> None:
    assert reserved_with(GROWING, AllocatorConfig()) == (30 + 42 + 54) * MIB
    assert reserved_with(GROWING, AllocatorConfig(expandable_segments=True)) == 60 * MIB


def test_more_than_there_is_is_told_with_what_helps() -> None:
    def told(device_bytes: int) -> str | None:
        return reserved_note(GROWING, 126 * MIB, resident_bytes=10 * MIB, device_bytes=device_bytes)

    assert told(136 * MIB) is None
    helped = told(136 * MIB - 1)
    assert helped is not None
    for text in ("would reserve 143MB", "and 73.4MB with", SETTING, "set that"):
        assert text in helped
    assert str(told(70 * MIB)).endswith("set that")
    assert str(told(65 * MIB)).endswith("plan for 5.24MB less of GPU memory, or more, as well")


def test_a_plan_tells_it_where_there_is_the_allocator() -> None:
    hardware = _tight(40 * MIB)
    found = _laid_out(hardware).result
    assert isinstance(found, Plan)
    told = found.predictions
    states = STATES_BYTES * found.workload.parameters
    assert told.reserved_bytes is not None
    assert told.arena_bytes is not None
    assert states + told.arena_bytes <= hardware.device_bytes < states + told.reserved_bytes
    assert any(SETTING in note for note in found.notes)
    roomy = _laid_out(machine(device_bytes=4 * GB)).result
    assert not any(SETTING in note for note in roomy.notes)
    alone = _laid_out(hardware, node=Node(hardware, "cpu")).result
    assert not any(SETTING in note for note in alone.notes)
