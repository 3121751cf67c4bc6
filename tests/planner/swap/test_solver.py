"""A solution is told from the numbers that PuLP hands out without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pulp
import pytest

from planner.swap import solver
from planner.swap.solver import SolverError, Status, installed_solvers, solve

SOLVERS = installed_solvers()


def _knapsack(items: int) -> pulp.LpProblem:
    """Items whose values hardly differ from their weights: hard to prove."""
    problem = pulp.LpProblem("knapsack", pulp.LpMinimize)
    taken = [problem.add_variable(f"x{i}", 0, 1, pulp.LpInteger) for i in range(items)]
    weights = [10_000 + (i * 7919) % 1009 for i in range(items)]
    problem += -pulp.lpSum((w + 10) * x for w, x in zip(weights, taken, strict=True))
    problem += pulp.lpSum(w * x for w, x in zip(weights, taken, strict=True)) <= sum(weights) / 2
    return problem


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solved_problem_has_its_objective(name: str) -> None:
    problem = pulp.LpProblem("one", pulp.LpMinimize)
    x = problem.add_variable("x", 0, 9, pulp.LpInteger)
    problem += 2 * x
    problem += 2 * x >= 5
    outcome = solve(problem, time_limit_s=10, solver=name)
    assert (outcome.status, outcome.objective) == (Status.OPTIMAL, 6.0)
    relaxed = solve(problem, time_limit_s=10, solver=name, relaxed=True)
    assert (relaxed.status, relaxed.objective) == (Status.OPTIMAL, 5.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_problem_without_a_solution_has_none(name: str) -> None:
    problem = pulp.LpProblem("none", pulp.LpMinimize)
    x = problem.add_variable("x", 0, 1, pulp.LpInteger)
    problem += 1 * x
    problem += 2 * x == 1
    outcome = solve(problem, time_limit_s=10, solver=name)
    assert (outcome.status, outcome.objective) == (Status.INFEASIBLE, None)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_that_is_stopped_never_hands_out_what_is_no_solution(name: str) -> None:
    problem = _knapsack(60)
    outcome = solve(problem, time_limit_s=0.2, solver=name)
    assert outcome.status in (Status.OPTIMAL, Status.FEASIBLE, Status.UNKNOWN)
    if outcome.is_solved:
        values = [variable.varValue for variable in problem.variables()]
        assert all(value in (0, 1) for value in map(round, values))
        assert all(constraint.valid(1e-3) for constraint in problem.constraints())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: setattr(x, "varValue", 2.5),
        lambda x: setattr(x, "varValue", 2.0),
        lambda x: setattr(x, "varValue", 99.0),
        lambda x: setattr(x, "varValue", None),
    ],
    ids=["not whole", "breaks the constraint", "out of bounds", "missing"],
)
def test_numbers_that_are_no_solution_are_not_taken_for_one(
    spoil: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = pulp.LpProblem("one", pulp.LpMinimize)
    x = problem.add_variable("x", 0, 9, pulp.LpInteger)
    problem += 1 * x
    problem += x >= 3

    def lie(self: pulp.LpProblem, *_: Any) -> None:
        spoil(x)
        self.assignStatus(pulp.LpStatusOptimal, pulp.LpSolutionOptimal)

    monkeypatch.setattr(pulp.LpProblem, "solve", lie)
    outcome = solve(problem, time_limit_s=1)
    assert (outcome.status, outcome.objective) == (Status.UNKNOWN, None)


def test_highs_comes_first_and_cbc_stands_in(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    problem = _knapsack(5)
    assert solve(problem, time_limit_s=10).solver == "HiGHS"
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(pulp, "listSolvers", lambda **_: ["PULP_CBC_CMD", "GUROBI"])
    assert installed_solvers() == ("PULP_CBC_CMD",)
    assert solve(problem, time_limit_s=10).solver == "PULP_CBC_CMD"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", SOLVERS)
def test_a_problem_is_solved_alike_each_time(name: str) -> None:
    def values() -> list[float]:
        problem = _knapsack(20)
        solve(problem, time_limit_s=30, gap=200.0, solver=name)
        return [variable.varValue for variable in problem.variables()]

    assert values() == values()


def test_no_solver_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "installed_solvers", lambda: ())
    with pytest.raises(SolverError, match="pip install highspy"):
        solve(_knapsack(3), time_limit_s=1)


def test_a_solver_that_fails_is_told_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise pulp.PulpSolverError("no disk")

    monkeypatch.setattr(pulp.LpProblem, "solve", fail)
    with pytest.raises(SolverError, match="failed: no disk") as caught:
        solve(_knapsack(3), time_limit_s=1)
    assert isinstance(caught.value.__cause__, pulp.PulpSolverError)
