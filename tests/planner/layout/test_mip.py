"""The MIP against brute force, and what it says when it has nothing to say."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from planner.layout import Problem, violations
from planner.layout.mip import Answer, solve_mip
from planner.layout.sections import cut_sections, to_layout
from planner.swap.solver import Outcome, Status
from tests.planner.layout.reference import lowest_height, problem_of, problems


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems(most=5).filter(lambda problem: problem.buffers))
def test_the_lowest_is_found_and_below_it_nothing(problem: Problem) -> None:
    sections = cut_sections(problem)
    lowest = lowest_height(problem) // sections.unit_bytes
    stacked = int((sections.sizes + sections.alignments).sum())
    answer = solve_mip(sections, lower=sections.bound, height=stacked + 1, time_limit_s=60)
    assert answer.offsets is not None
    assert violations(problem, to_layout(problem, sections, answer.offsets)) == []
    assert sections.height(answer.offsets) == answer.lower == lowest
    if lowest > sections.bound:
        below = solve_mip(sections, lower=sections.bound, height=lowest, time_limit_s=60)
        assert below == Answer(None, lowest)


def test_numbers_of_an_unsolved_program_are_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = cut_sections(problem_of((0, 2, 3), (1, 4, 5), (2, 5, 4)))
    unknown = Outcome(Status.UNKNOWN, "HiGHS", 1.0)
    monkeypatch.setattr("planner.layout.mip.solve", lambda *_, **__: unknown)
    assert solve_mip(sections, lower=3, height=99, time_limit_s=1) == Answer(None, 3)
