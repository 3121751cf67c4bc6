"""The search against brute force: it finds the lowest layout, and proves that none is lower."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Problem, violations
from planner.layout.greedy import orders, place_in_order
from planner.layout.rankings import RANKINGS, plain_rankings
from planner.layout.search import Budget, Outcome, Search
from planner.layout.sections import Sections, cut_sections, to_layout
from planner.layout.topology import build_topology
from tests.planner.layout.reference import lowest_height, problem_of, problems
from tests.planner.layout.traces import transformer_step


def search_within(sections: Sections, capacity: int, ranking: int = 0, slices: int = 1) -> Outcome:
    """Search without a limit, in slices of one placement first if asked."""
    search = Search(build_topology(sections), capacity, plain_rankings(sections)[ranking])
    for _ in range(slices - 1):
        outcome = search.run(Budget(1, time.monotonic() + 60))
        if outcome.offsets is not None or outcome.is_proof:
            return outcome
    return search.run(Budget(10**9, time.monotonic() + 60))


@pytest.mark.parametrize("ranking", range(len(RANKINGS)))
@settings(max_examples=150, deadline=None)
@given(problem=problems(most=6), slices=st.integers(1, 8))
def test_the_lowest_is_found_and_below_it_nothing(
    ranking: int, problem: Problem, slices: int
) -> None:
    sections = cut_sections(problem)
    lowest = lowest_height(problem) // sections.unit_bytes
    found = search_within(sections, lowest, ranking, slices)
    assert found.offsets is not None
    assert violations(problem, to_layout(problem, sections, found.offsets)) == []
    assert sections.height(found.offsets) == lowest
    if lowest:
        assert search_within(sections, lowest - 1, ranking, slices) == Outcome(None, is_proof=True)


def test_a_budget_that_is_used_up_proves_nothing() -> None:
    sections = cut_sections(transformer_step(40, seed=3))
    search = Search(build_topology(sections), sections.bound, plain_rankings(sections)[0])
    assert search.run(Budget(10, time.monotonic() + 60)) == Outcome(None, is_proof=False)
    late = Budget(10**9, time.monotonic() - 1)
    assert search.run(late) == Outcome(None, is_proof=False)


@settings(deadline=None)
@given(problems(most=8), st.booleans())
def test_greedy_placements_are_valid(problem: Problem, best_fit: bool) -> None:
    sections = cut_sections(problem)
    for _, order in orders(sections):
        offsets = place_in_order(sections, order, best_fit=best_fit)
        assert violations(problem, to_layout(problem, sections, offsets)) == []


@pytest.mark.parametrize(("best_fit", "offset"), [(False, 0), (True, 7)])
def test_first_fit_takes_the_lowest_gap_and_best_fit_the_smallest(
    best_fit: bool, offset: int
) -> None:
    """The last buffer finds gaps at [0, 5) and [7, 10), where short-lived ones have been."""
    problem = problem_of((0, 1, 5), (0, 3, 2), (0, 1, 3), (0, 3, 1), (1, 3, 3))
    sections = cut_sections(problem)
    offsets = place_in_order(sections, np.arange(5), best_fit=best_fit)
    assert offsets.tolist() == [0, 5, 7, 10, offset]
