"""Memory layouts of traced steps of published models, and of google/minimalloc's instances.

::

    python -m benchmarks.layout                                       # every model, 32K to 4M
    python -m benchmarks.layout --models llama-3.1-8b gpt2 --tokens 32k 1M
    python -m benchmarks.layout --models --csv shared/layouts/*.csv --json out.json

Run from the repository root; one process, no GPU. A rank of 8 that share a sequence is laid out:
with every tile recomputed, with tiles, `x` and `o` mixed over layers, and as `memo plan` would for
8 H100 with 80 GB and a host of 1 TB, where that fits. Instances are solved for the capacity in
their names. Every layout has passed the validator, which is asked once more here.
In this file: the command line, and what is run.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import context
from benchmarks.layout_cases import Case, cases_of
from benchmarks.layout_tables import Row, instances_table, line, steps_table
from benchmarks.published import PUBLISHED
from memo.planning.arena import Arena, lay_out
from planner.layout import Problem, Solution, read_problem, solve, violations
from planner.sizes import parse_tokens

TOKENS = ("32k", "256k", "1M", "4M")
STEP_LIMIT_S, INSTANCE_LIMIT_S = 10.0, 60.0


def parser() -> ArgumentParser:
    found = ArgumentParser("benchmarks.layout", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--models", nargs="*", choices=[*PUBLISHED], default=[*PUBLISHED])
    found.add_argument("--tokens", nargs="+", type=_tokens, default=[*map(_tokens, TOKENS)])
    found.add_argument("--csv", nargs="*", type=Path, default=[], help="named NAME.CAPACITY.csv")
    found.add_argument("--step-limit", type=float, default=STEP_LIMIT_S, help="seconds")
    found.add_argument("--instance-limit", type=float, default=INSTANCE_LIMIT_S, help="seconds")
    found.add_argument("--json", type=Path)
    return found


def _tokens(text: str) -> int:
    return parse_tokens(text, "--tokens")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    console = context.console()
    steps, instances = [], []
    for case in cases_of(options.models, options.tokens):
        steps.append(_step(case, options.step_limit))
        console.print(line(steps[-1]))
    for path in options.csv:
        instances.append(_instance(path, options.instance_limit))
        console.print(line(instances[-1]))
    for table, rows in ((steps_table, steps), (instances_table, instances)):
        if rows:
            console.print(table(rows))
    if options.json is not None:
        found = {"steps": [*map(asdict, steps)], "instances": [*map(asdict, instances)]}
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _step(case: Case, limit_s: float) -> Row:
    start_s, cpu_s = time.monotonic(), time.process_time()
    arena = lay_out(case.trace, case.swap, gradient_share=case.gradient_share, time_limit_s=limit_s)
    seconds = time.monotonic() - start_s, time.process_time() - cpu_s
    return _row(case.model, case.tokens, case.placement, arena, seconds, case.trace_s)


def _row(
    model: str,
    tokens: int,
    placement: str,
    arena: Arena,
    seconds: tuple[float, float],
    trace_s: float,
) -> Row:
    return Row(
        name=model,
        tokens=tokens,
        placement=placement,
        reserved_bytes=arena.reserved_bytes,
        trace_s=trace_s,
        **_figures(arena.problem, arena.solution, seconds),
    )


def _instance(path: Path, limit_s: float) -> Row:
    problem, start_s, cpu_s = read_problem(path), time.monotonic(), time.process_time()
    capacity_bytes = next(_numbers(path), None)
    solution = solve(problem, goal_bytes=capacity_bytes, time_limit_s=limit_s)
    seconds = time.monotonic() - start_s, time.process_time() - cpu_s
    return Row(
        name=path.name.split(".")[0],
        capacity_bytes=capacity_bytes,
        **_figures(problem, solution, seconds),
    )


def _numbers(path: Path) -> Iterator[int]:
    return (int(part) for part in path.name.split(".") if part.isdecimal())


def _figures(problem: Problem, solution: Solution, seconds: tuple[float, float]) -> dict[str, Any]:
    found = violations(problem, solution.layout)
    if found:
        raise SystemExit(f"invalid layout: {found[0]}")
    return {
        "buffers": len(problem.buffers),
        "lower_bound_bytes": solution.lower_bound_bytes,
        "height_bytes": solution.height_bytes,
        "solver": solution.solver,
        "layout_s": seconds[0],
        "layout_cpu_s": seconds[1],
    }


if __name__ == "__main__":
    main()
