"""The crowded core first: valid layouts, and the bound where greedy placement alone misses it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from planner.layout import Layout, Problem, violations
from planner.layout.core import NEAR_BOUND, solve_around_core
from planner.layout.greedy import orders, place_in_order
from planner.layout.sections import cut_sections
from tests.planner.layout.reference import (
    largest_live_sum,
    live,
    occupied,
    problem_of,
    problems,
)

# The bound is 16, at two moments; greedy placement ends at 17, whatever the order.
TIGHT = ((6, 7, 2), (3, 7, 4), (1, 5, 4), (3, 5, 4), (6, 7, 6), (4, 8, 4), (1, 3, 5))
ROOMY = ((7, 12, 3), (8, 11, 5), (10, 14, 4), (12, 15, 7), (-4, 2, 1), (-3, 0, 6))
FAR = 1 << 40


def core_of(problem: Problem) -> set[str]:
    """Who lives at a moment whose sum is near the largest."""
    near = NEAR_BOUND * largest_live_sum(problem)
    moments = [list(live(problem, start)) for start in {b.lower for b in problem.buffers}]
    crowded = [m for m in moments if sum(occupied(problem, b) for b in m) >= near]
    return {buffer.id for moment in crowded for buffer in moment}


def around(problem: Problem, *, goal: int = 0, below: int = FAR) -> Layout | None:
    return solve_around_core(problem, goal_bytes=goal, below_bytes=below, time_limit_s=30)


def test_the_bound_is_met_where_greedy_placement_misses_it() -> None:
    problem = problem_of(*TIGHT, *ROOMY)
    sections = cut_sections(problem)
    greedy = [
        sections.height(place_in_order(sections, order, best_fit=best_fit))
        for _, order in orders(sections)
        for best_fit in (False, True)
    ]
    assert min(greedy) * sections.unit_bytes > 16
    found = around(problem, goal=16, below=17)
    assert found is not None
    assert found.height_bytes == 16
    assert violations(problem, found) == []


@settings(max_examples=150, deadline=None)
@given(problems(most=7))
def test_layouts_are_valid_and_lower_than_asked(problem: Problem) -> None:
    found = around(problem)
    if len(core_of(problem)) == len(problem.buffers):
        assert found is None
        return
    assert found is not None
    assert violations(problem, found) == []
    assert found.height_bytes >= largest_live_sum(problem)
    assert around(problem, below=found.height_bytes) is None


@pytest.mark.parametrize("below", [1, 15, 16])
def test_nothing_is_returned_that_is_not_lower(below: int) -> None:
    assert around(problem_of(*TIGHT, *ROOMY), goal=16, below=below) is None
