"""Four public instances that greedy placement misses by 12 to 37 per cent, at their capacity."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.layout import Fit, read_problem, solve, violations

INSTANCES = Path(__file__).parent / "instances"
CAPACITY_BYTES = 1_048_576


@pytest.mark.parametrize("name", ["C", "F", "J"])
def test_quick_ones_fit(name: str) -> None:
    _solve(name)


@pytest.mark.slow
def test_the_slow_one_fits() -> None:
    _solve("A")


def _solve(name: str) -> None:
    problem = read_problem(INSTANCES / f"{name}.{CAPACITY_BYTES}.csv")
    solution = solve(problem, goal_bytes=CAPACITY_BYTES, time_limit_s=100)
    assert solution.fit(CAPACITY_BYTES) is Fit.FITS
    assert violations(problem, solution.layout) == []
