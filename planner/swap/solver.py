"""Solving a mixed-integer program with what is installed, and telling a solution from numbers.

Scope: PuLP's solvers. PuLP hands out numbers of unsolved problems as well: what counts is
`sol_status`, and that the numbers satisfy the problem.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum

import pulp

PREFERRED = ("HiGHS", "HiGHS_CMD", "PULP_CBC_CMD", "COIN_CMD")
"""In this order, by PuLP's names. HiGHS is the package `highspy`; CBC comes with PuLP."""

_TOLERANCE = 1e-5
"""By which a solver's numbers may miss a constraint; ours are in GiB, seconds and tiles."""


class SolverError(RuntimeError):
    """No solver is there, or one that failed; its cause is chained."""


class Status(StrEnum):
    """OPTIMAL within the gap that was asked; FEASIBLE: stopped before; INFEASIBLE: proved to have
    no solution; UNKNOWN: stopped without one.
    """

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a solve ended. `objective` is of the values that the problem's variables now have;
    without a solution it is None, and the variables' values mean nothing.
    """

    status: Status
    solver: str
    solve_s: float
    objective: float | None = None

    @property
    def is_solved(self) -> bool:
        return self.objective is not None


def installed_solvers() -> tuple[str, ...]:
    """The solvers that can be used here, best first."""
    available = set(pulp.listSolvers(onlyAvailable=True))
    return tuple(name for name in PREFERRED if name in available)


def solve(
    problem: pulp.LpProblem,
    *,
    time_limit_s: float,
    gap: float = 0.0,
    solver: str | None = None,
    relaxed: bool = False,
) -> Outcome:
    """Minimise. `gap`: in the objective's unit, at which to stop; `relaxed`: without the
    integrality.

    Raises:
        SolverError: when no solver is installed, the one that is named is not, or it failed.
    """
    name = _chosen(solver)
    start_s = time.perf_counter()
    options = {"msg": False, "timeLimit": time_limit_s, "gapAbs": gap, "gapRel": 0.0}
    if name.startswith("HiGHS"):
        options["threads"] = 1  # CBC is serial unless it is told
    try:
        problem.solve(pulp.getSolver(name, mip=not relaxed, **options))
    except (pulp.PulpSolverError, OSError) as error:
        raise SolverError(f"the solver {name} failed: {error}") from error
    solve_s = time.perf_counter() - start_s
    status = _status(problem, relaxed)
    if status in (Status.OPTIMAL, Status.FEASIBLE):
        return Outcome(status, name, solve_s, float(pulp.value(problem.objective)))
    return Outcome(status, name, solve_s)


def _chosen(solver: str | None) -> str:
    installed = installed_solvers()
    if not installed:
        raise SolverError("no solver is installed: pip install highspy, or pulp with its CBC")
    if solver is not None and solver not in installed:
        raise SolverError(f"solver is {solver!r}: installed here are {', '.join(installed)}")
    return solver or installed[0]


def _status(problem: pulp.LpProblem, relaxed: bool) -> Status:
    if problem.status == pulp.LpStatusInfeasible:  # CBC's "integer infeasible" has no sol_status
        return Status.INFEASIBLE
    solved = (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    if problem.sol_status not in solved or not _holds(problem, relaxed):
        return Status.UNKNOWN
    return Status.OPTIMAL if problem.sol_status == pulp.LpSolutionOptimal else Status.FEASIBLE


def _holds(problem: pulp.LpProblem, relaxed: bool) -> bool:
    """Whether every variable has a value, and all constraints are satisfied by them."""
    variables = problem.variables()
    if any(variable.varValue is None for variable in variables):
        return False
    if not relaxed and not all(variable.valid(_TOLERANCE) for variable in variables):
        return False
    return all(c.valid(_TOLERANCE * _scale(c)) for c in problem.constraints())


def _scale(constraint: pulp.LpConstraint) -> float:
    terms = [abs(float(c * v.varValue)) for v, c in constraint.items()]
    return max(1.0, abs(float(constraint.constant)), *terms)
