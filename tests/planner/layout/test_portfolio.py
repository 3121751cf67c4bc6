"""The portfolio: the lowest layout on small problems, the bound on transformers, and its limits."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from planner.layout import (
    Fit,
    Layout,
    LayoutError,
    Problem,
    Progress,
    Solution,
    portfolio,
    read_problem,
    solve,
    violations,
)
from planner.layout.sections import Ints, Sections, layout_at
from tests.planner.layout.reference import largest_live_sum, lowest_height, problem_of, problems
from tests.planner.layout.traces import transformer_step

INSTANCES = Path(__file__).parent / "instances"

# The bound is 16 and can be met; greedy placement ends at 17, whatever the order.
GAP = ((6, 7, 2), (3, 7, 4), (1, 5, 4), (3, 5, 4), (6, 7, 6), (4, 8, 4), (1, 3, 5))


@settings(max_examples=150, deadline=None)
@given(problems(most=6))
def test_small_problems_are_solved_and_proven(problem: Problem) -> None:
    solution = solve(problem, time_limit_s=30)
    assert violations(problem, solution.layout) == []
    assert solution.optimal
    assert solution.gap == 0
    lowest = lowest_height(problem)
    assert solution.height_bytes == solution.lower_bound_bytes == lowest


@pytest.mark.parametrize(("layers", "tiles"), [(1, 3), (8, 2), (40, 1), (80, 2)])
def test_transformers_are_laid_out_at_the_bound(layers: int, tiles: int) -> None:
    problem = transformer_step(layers, tiles=tiles, seed=layers)
    solution = solve(problem, time_limit_s=10)
    assert solution.optimal
    assert solution.height_bytes == largest_live_sum(problem)
    assert violations(problem, solution.layout) == []
    assert all(offset % 512 == 0 for offset in solution.layout.offsets_bytes.values())


def test_no_buffers_take_no_memory() -> None:
    solution = solve(Problem(()))
    assert (solution.height_bytes, solution.optimal, solution.layout.offsets_bytes) == (0, True, {})


def test_the_search_stops_at_the_goal_and_says_what_fits() -> None:
    problem = transformer_step(3, seed=1)
    lowest = solve(problem).height_bytes
    goal = solve(problem, goal_bytes=lowest * 2)
    assert goal.height_bytes <= lowest * 2
    assert goal.fit(lowest * 2) is Fit.FITS
    assert goal.fit(goal.lower_bound_bytes - 1) is Fit.IMPOSSIBLE


def test_a_height_above_the_bound_is_not_found_rather_than_impossible() -> None:
    layout = Layout({"a": 0}, 10)
    solution = Solution(layout, 8, "greedy", 0.1)
    assert [solution.fit(c) for c in (10, 9, 8, 7)] == [
        Fit.FITS,
        Fit.NOT_FOUND,
        Fit.NOT_FOUND,
        Fit.IMPOSSIBLE,
    ]
    assert solution.gap == pytest.approx(0.2)
    assert not solution.optimal


def test_a_known_layout_is_where_it_begins() -> None:
    """Greedy placements alone are worse here: with hardly any time the known one stays."""
    problem = transformer_step(80, tiles=1, seed=0)
    best = solve(problem, time_limit_s=30)
    again = solve(problem, known=best.layout, time_limit_s=1e-9)
    assert again.height_bytes == best.height_bytes
    assert again.solver == "known"


def test_a_known_layout_that_is_not_valid_is_refused() -> None:
    problem = problem_of((0, 2, 3), (1, 3, 3))
    with pytest.raises(ValueError, match="known is not a layout of this problem"):
        solve(problem, known=layout_at(problem, {"b0": 0, "b1": 0}))


@pytest.mark.parametrize("time_limit_s", [0, -1, float("nan")])
def test_a_time_limit_that_is_none_is_refused(time_limit_s: float) -> None:
    with pytest.raises(ValueError, match="time_limit_s is"):
        solve(problem_of((0, 1, 1)), time_limit_s=time_limit_s)


def test_progress_is_told_and_only_gets_better() -> None:
    told: list[Progress] = []
    problem = transformer_step(40, tiles=1, seed=40)
    solution = solve(problem, time_limit_s=30, on_progress=told.append)
    heights = [progress.height_bytes for progress in told]
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] == solution.height_bytes
    assert [p.stage for p in told[:1]] == ["greedy by size, first fit"]
    elapsed = [progress.elapsed_s for progress in told]
    assert elapsed == sorted(elapsed)


def test_the_time_limit_holds() -> None:
    """The search takes longer than this, and the best so far is given back."""
    problem = read_problem(INSTANCES / "A.1048576.csv")
    start_s = time.monotonic()
    solution = solve(problem, time_limit_s=0.3)
    assert time.monotonic() - start_s < 5
    assert violations(problem, solution.layout) == []
    assert solution.lower_bound_bytes == 1_048_576


def test_without_time_there_is_one_placement() -> None:
    told: list[Progress] = []
    problem = read_problem(INSTANCES / "C.1048576.csv")
    solution = solve(problem, time_limit_s=1e-9, on_progress=told.append)
    assert [progress.stage for progress in told] == ["greedy by size, first fit"]
    assert solution.height_bytes == told[0].height_bytes
    assert not solution.optimal


def test_an_invalid_layout_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def everything_at_zero(sections: Sections, *_: object, **__: object) -> Ints:
        return np.zeros(sections.buffers, np.int64)

    monkeypatch.setattr(portfolio, "place_in_order", everything_at_zero)
    with pytest.raises(LayoutError, match="greedy by size, first fit made an invalid layout"):
        solve(problem_of((0, 2, 3), (1, 3, 3)))


def test_the_mip_closes_the_gap_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portfolio, "minimise", lambda *_, **__: None)
    problem = problem_of(*GAP)
    solution = solve(problem, time_limit_s=60)
    assert solution.solver == "mip"
    assert solution.optimal
    assert solution.height_bytes == lowest_height(problem) == 16


def test_without_a_solver_the_best_so_far_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portfolio, "minimise", lambda *_, **__: None)
    monkeypatch.setattr(portfolio, "installed_solvers", lambda: ())
    solution = solve(problem_of(*GAP), time_limit_s=60)
    assert not solution.optimal
    assert solution.gap == pytest.approx(1 / 17)
    assert solution.solver.startswith("greedy")


def test_what_doubles_cannot_tell_apart_is_not_asked_of_the_mip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("was asked")

    monkeypatch.setattr(portfolio, "minimise", lambda *_, **__: None)
    monkeypatch.setattr(portfolio, "solve_mip", asked)
    rows = [(lower, upper, (size << 40) + 1) for lower, upper, size in GAP]
    assert solve(problem_of(*rows), time_limit_s=60).solver.startswith("greedy")
    with pytest.raises(AssertionError, match="was asked"):
        solve(problem_of(*GAP), time_limit_s=60)
