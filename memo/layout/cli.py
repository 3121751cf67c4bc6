"""`memo layout FILE.csv`: an address for every buffer of a table in google/minimalloc's format.

Scope: options, what is printed, and how the command fails. Results go to standard output, progress
and errors to standard error. Exit status 1: the layout doesn't fit; 2: a file or an option is
refused, as typer has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from memo.cli_errors import fail, one_line_errors

if TYPE_CHECKING:
    from planner.layout import OnProgress, Problem, Progress, Solution

_DOES_NOT_FIT, _REFUSED = 1, 2


def layout(
    file: Annotated[
        Path, typer.Argument(help="Table with the columns id, lower, upper and size, in CSV.")
    ],
    capacity: Annotated[
        str | None,
        typer.Option(
            help="Stop at a layout of this height, such as 1048576 or 80GB; exit with 1 if there "
            "is none. If not given: as low as the time limit allows."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the table with the column offset added."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds, for all solvers together.")] = 60.0,
    alignment: Annotated[
        int, typer.Option(min=1, help="Of every offset, in bytes; CUDA's is 512.")
    ] = 1,
) -> None:
    """Lay buffers with known lives out in as little memory as can be.

    FILE is in the format of google/minimalloc: a buffer lives on [lower, upper). The layout is
    checked by a validator that knows nothing of the solvers. Exit status 1: no layout was found
    that fits the capacity; 2: the file or an option is refused.
    """
    with one_line_errors(), _refusals():
        asked = _Asked(file, _capacity_bytes(capacity), output, time_limit, alignment)
        problem, solution = _solve(asked)
        if output is not None:
            from planner.layout import write_layout

            write_layout(output, problem, solution.layout)
    fits = asked.capacity_bytes is None or solution.height_bytes <= asked.capacity_bytes
    if as_json:
        typer.echo(json.dumps(_figures(problem, solution, asked), indent=2))
    else:
        _show(problem, solution, asked)
    if not fits:
        raise typer.Exit(_DOES_NOT_FIT)


@contextmanager
def _refusals() -> Iterator[None]:
    """End with a status of their own where a file or an option is refused."""
    try:
        yield
    except ValueError as error:
        fail(str(error), status=_REFUSED)
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}", status=_REFUSED)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options, checked."""

    file: Path
    capacity_bytes: int | None
    output: Path | None
    time_limit_s: float
    alignment_bytes: int

    def __post_init__(self) -> None:
        if not self.time_limit_s > 0:
            raise ValueError(f"--time-limit is {self.time_limit_s:g}: it takes more than 0 seconds")
        # Known before a minute is spent on solving.
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise ValueError(f"--output is {self.output}: there is no such folder")


def _capacity_bytes(capacity: str | None) -> int | None:
    from planner.sizes import parse_bytes

    return None if capacity is None else parse_bytes(capacity, "--capacity")


def _solve(asked: _Asked) -> tuple[Problem, Solution]:
    from planner.layout import read_problem, solve

    problem = read_problem(asked.file, alignment_bytes=asked.alignment_bytes)
    with _progress() as on_progress:
        solution = solve(
            problem,
            goal_bytes=asked.capacity_bytes,
            time_limit_s=asked.time_limit_s,
            on_progress=on_progress,
        )
    return problem, solution


def _figures(problem: Problem, solution: Solution, asked: _Asked) -> dict[str, object]:
    figures: dict[str, object] = {
        "buffers": len(problem.buffers),
        "height_bytes": solution.height_bytes,
        "lower_bound_bytes": solution.lower_bound_bytes,
        "gap": solution.gap,
        "optimal": solution.optimal,
        "solver": solution.solver,
        "solve_s": round(solution.solve_s, 3),
    }
    if asked.capacity_bytes is not None:
        fit = solution.fit(asked.capacity_bytes)
        figures |= {"capacity_bytes": asked.capacity_bytes, "fit": fit.value}
    return figures


def _show(problem: Problem, solution: Solution, asked: _Asked) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(problem, solution, asked):
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _rows(problem: Problem, solution: Solution, asked: _Asked) -> Iterator[tuple[str, str]]:
    gap = "proven optimal" if solution.optimal else f"gap {solution.gap:.2%}"
    yield "buffers", f"{len(problem.buffers):,}"
    yield "height", f"{solution.height_bytes:,} bytes, {gap}"
    yield "lower bound", f"{solution.lower_bound_bytes:,} bytes"
    yield "found by", f"{solution.solver or 'nothing to place'}, in {solution.solve_s:.2f} s"
    if asked.capacity_bytes is not None:
        fit = solution.fit(asked.capacity_bytes)
        yield "capacity", f"{asked.capacity_bytes:,} bytes: {_VERDICTS[fit.value]}"
    if asked.output is not None:
        yield "written", str(asked.output)


_VERDICTS = {
    "fits": "fits",
    "not found": "no layout found that fits; a longer --time-limit may find one",
    "impossible": "no layout fits",
}


@contextmanager
def _progress() -> Iterator[OnProgress | None]:
    """Yield what shows the best height so far, on a terminal; None elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with console.status("reading") as status:

        def show(progress: Progress) -> None:
            over = progress.height_bytes / max(1, progress.lower_bound_bytes) - 1
            status.update(
                f"{progress.stage}: {progress.height_bytes:,} bytes, {over:.2%} above the lower "
                f"bound, {progress.elapsed_s:.0f} s"
            )

        yield show
