"""The MIP against brute force, and what it says when it has nothing to say."""

from __future__ import annotations

import pulp
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


def _solved_with(
    monkeypatch: pytest.MonkeyPatch, objective: float, values: dict[str, float]
) -> None:
    """The solver calls these values optimal."""

    def solved(program: pulp.LpProblem, **_: object) -> Outcome:
        for variable in program.variables():
            variable.varValue = values.get(variable.name, 0.0)
        return Outcome(Status.OPTIMAL, "HiGHS", 1.0, objective)

    monkeypatch.setattr("planner.layout.mip.solve", solved)


def test_buffers_that_lie_below_each_other_in_a_circle_are_no_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a solver's tolerance allows for buffers that are small beside the height."""
    sections = cut_sections(problem_of((0, 2, 3), (0, 2, 4), (0, 2, 5)))
    circle = {"below_0_1": 1.0, "below_1_2": 1.0, "below_0_2": 0.0}
    _solved_with(monkeypatch, 12.0, circle)
    assert solve_mip(sections, lower=3, height=99, time_limit_s=1) == Answer(None, 3)


def test_what_is_proven_is_what_the_solver_found_not_what_became_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sections = cut_sections(problem_of((0, 2, 3), (0, 2, 4), (0, 2, 5)))
    _solved_with(monkeypatch, 10.0, {"below_0_1": 1.0, "below_0_2": 1.0, "below_1_2": 1.0})
    answer = solve_mip(sections, lower=3, height=99, time_limit_s=1)
    assert answer.offsets is not None
    assert (sections.height(answer.offsets), answer.lower) == (12, 10)
