"""Sections, their totals and pairs, against a look at every moment."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings

from planner.layout import Problem
from planner.layout.sections import cut_sections
from tests.planner.layout.reference import (
    largest_live_sum,
    live,
    moments,
    problem_of,
    problems,
)


@settings(deadline=None)
@given(problems(most=9))
def test_the_bound_is_the_largest_live_sum(problem: Problem) -> None:
    sections = cut_sections(problem)
    assert sections.bound * sections.unit_bytes == largest_live_sum(problem)


@settings(deadline=None)
@given(problems(most=9))
def test_who_lives_together_shares_a_section_and_nobody_else_does(problem: Problem) -> None:
    sections = cut_sections(problem)
    together = {
        (one, other)
        for one, other in combinations(range(len(problem.buffers)), 2)
        if problem.buffers[one].lower < problem.buffers[other].upper
        and problem.buffers[other].lower < problem.buffers[one].upper
    }
    found = {
        (one, int(other))
        for one in range(sections.buffers)
        for other in sections.overlapping(one)
        if one < other
    }
    assert found == together
    assert sections.pairs() == len(together)


@settings(deadline=None)
@given(problems(most=9))
def test_sections_are_the_largest_live_sets(problem: Problem) -> None:
    """Each is the live set of a moment, and none is part of another."""
    sections = cut_sections(problem)
    sets = [
        {i for i in range(sections.buffers) if sections.first[i] <= at < sections.last[i]}
        for at in range(len(sections.totals))
    ]
    index = {buffer.id: i for i, buffer in enumerate(problem.buffers)}
    at_moments = [{index[b.id] for b in live(problem, t)} for t in moments(problem)]
    assert all(section in at_moments for section in sets)
    assert not any(one < other for one in sets for other in sets)
    assert all(any(moment <= section for section in sets) for moment in at_moments if moment)


def test_the_unit_is_the_largest_that_serves() -> None:
    assert cut_sections(problem_of((0, 4, 12), (1, 5, 18))).unit_bytes == 6
    aligned = problem_of((0, 4, 1000), (1, 5, 1536), alignment_bytes=512)
    assert cut_sections(aligned).unit_bytes == 512
    assert cut_sections(aligned).sizes.tolist() == [2, 3]
