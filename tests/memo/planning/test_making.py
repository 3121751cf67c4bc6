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
from planner.contracts import Tier
from planner.hardware import Hardware
from planner.layout import Buffer, Problem
from planner.plan import NoPlan, Plan
from planner.trace import StepTrace
from tests.memo.planning.common import GB, MIB, machine, planned

STATES_BYTES = 14  # of a parameter
HIGHER_BYTES = 24 * MIB
TOKENS = 3000


class Higher(Arena):
    """A layout with a hole that no plan is without."""

    @property
    def height_bytes(self) -> int:
        return super().height_bytes + HIGHER_BYTES


class TooHigh(Arena):
    """A layout for which no device has room."""

    @property
    def height_bytes(self) -> int:
        return 100 * GB


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


def test_why_the_optimizer_lies_elsewhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its plan on the device fits as simulated, and no layout of it does, not that it lacks
    room.
    """

    def told(more_bytes: int) -> str:
        found = planned(_tight(more_bytes), lay_out=True).result
        assert isinstance(found, Plan)
        assert found.workload.offload_optimizer == "host"
        return next(note for note in found.notes if "the optimizer's states lie on" in note)

    assert told(-10 * MIB).endswith("with them on the device nothing fits")
    monkeypatch.setattr(making, "lay_out", _higher)
    assert told(40 * MIB).endswith("no layout of the device's memory was found that fits")


def test_a_degree_without_a_layout_gives_way_and_the_notes_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slow link has each sequence on one GPU, whose layouts are made to fail."""

    def only_shared(trace: StepTrace, *arguments: Any, **named: Any) -> Arena:
        found = lay_out(trace, *arguments, **named)
        kind = TooHigh if trace.tokens == TOKENS else Arena
        return kind(found.problem, found.solution, found.reserved_bytes)

    node = {"gpus": 4, "link_bytes_per_s": 2e8, "device_bytes": 4 * GB}
    asked: dict[str, Any] = {"sequence_parallel": 4, "compare_degrees": True, "tokens": TOKENS}
    before = planned(machine(**node), lay_out=True, **asked).result
    assert before.workload.sequence_parallel == 1
    assert any("compared before layouts" in note for note in before.notes)
    monkeypatch.setattr(making, "lay_out", only_shared)
    found = planned(machine(**node), lay_out=True, **asked).result
    assert isinstance(found, Plan)
    assert found.workload.sequence_parallel == 4
    (note,) = (note for note in found.notes if "sequence_parallel" in note)
    assert note.startswith("sequence_parallel 4 was chosen: of 1, which was preferred, no layout")


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
