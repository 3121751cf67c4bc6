"""The validator: faults planted in valid layouts are found, and valid ones pass."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Buffer, Layout, Problem, violations
from planner.layout.sections import layout_at
from tests.planner.layout.reference import occupied, problem_of, problems

PROBLEM = problem_of((0, 3, 4), (3, 9, 4), (0, 9, 4), (9, 21, 4), (0, 21, 4))
OFFSETS = {"b0": 8, "b1": 8, "b2": 4, "b3": 4, "b4": 0}


def test_a_valid_layout_passes() -> None:
    assert violations(PROBLEM, Layout(OFFSETS, 12)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"b0": 7}, "buffers b2 at [4, 8) and b0 at [7, 11)"),
        ({"b0": 0}, "share bytes"),
        ({"b4": 4}, "share bytes"),
        ({"b0": -1}, "offset -1 is negative"),
        ({"b9": 0}, "b9 is no buffer"),
    ],
)
def test_planted_faults_are_found(change: dict[str, int], complaint: str) -> None:
    found = violations(PROBLEM, layout_at(PROBLEM, {**OFFSETS, **change}))
    assert any(complaint in line for line in found), found


def test_a_missing_buffer_is_found() -> None:
    offsets = {name: offset for name, offset in OFFSETS.items() if name != "b3"}
    assert violations(PROBLEM, Layout(offsets, 12)) == ["buffer b3 has no offset"]


@pytest.mark.parametrize("height_bytes", [11, 13])
def test_a_wrong_height_is_found(height_bytes: int) -> None:
    assert "the highest end is 12" in violations(PROBLEM, Layout(OFFSETS, height_bytes))[0]


def test_alignments_of_problem_and_buffer_are_checked() -> None:
    problem = Problem((Buffer("a", 0, 1, 8, 12), Buffer("b", 5, 6, 8)), alignment_bytes=8)
    assert violations(problem, layout_at(problem, {"a": 24, "b": 8})) == []
    assert len(violations(problem, layout_at(problem, {"a": 8, "b": 8}))) == 1
    assert len(violations(problem, layout_at(problem, {"a": 24, "b": 12}))) == 1


@settings(deadline=None)
@given(problems(most=8, aligned=False), st.data())
def test_it_agrees_with_a_check_of_every_pair(problem: Problem, data: st.DataObject) -> None:
    unit = problem.alignment_bytes
    offsets = {b.id: unit * data.draw(st.integers(0, 20), label=b.id) for b in problem.buffers}
    clash = any(
        one.id < other.id
        and one.lower < other.upper
        and other.lower < one.upper
        and offsets[one.id] < offsets[other.id] + other.size_bytes
        and offsets[other.id] < offsets[one.id] + one.size_bytes
        for one in problem.buffers
        for other in problem.buffers
    )
    height = max((offsets[b.id] + occupied(problem, b) for b in problem.buffers), default=0)
    assert bool(violations(problem, Layout(offsets, height))) == clash
