"""The command `memo doctor`: what it takes, what it prints, and how it fails.

Scope: options into a probe, findings into a table or JSON. Heavy imports happen inside, so that
`memo --help` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from memo.cli_errors import fail, one_line_errors
from memo.cli_values import parse_size_bytes

if TYPE_CHECKING:
    from memo.doctor.contracts import Finding, Machine


def doctor(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Where tensors would be spilled; default: here."),
    ] = None,
    size: Annotated[
        str, typer.Option(help="How much is written in each, such as 256MiB or 1GB.")
    ] = "256MiB",
    measure: Annotated[
        bool, typer.Option(help="Time compute, copies and disks; else only ask.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what this machine has and allows, and what to change; it takes some seconds.

    Files that are written have no name, and are gone afterwards. The exit status is 1 when a
    directory can't be used.
    """
    console = Console(stderr=as_json, highlight=False)
    with one_line_errors():
        size_bytes = parse_size_bytes("--size", size)
    machine = _probe(directories or [Path()], size_bytes, measure, console)
    _print(machine, console, as_json)
    problems = [f"{disk.directory}: {disk.problem}" for disk in machine.disks if disk.problem]
    if problems:
        fail("; ".join(problems))


def _probe(
    directories: Sequence[Path], size_bytes: int, measure: bool, console: Console
) -> Machine:
    from memo.doctor.probe import probe_machine

    with console.status("looking") as status:
        return probe_machine(
            list(dict.fromkeys(directories)),
            measure=measure,
            disk_bytes=size_bytes,
            on_part=lambda part: status.update(f"looking at {part}"),
        )


def _print(machine: Machine, console: Console, as_json: bool) -> None:
    from memo.doctor.show import findings_table, summary
    from memo.doctor.verdicts import findings

    lines = findings(machine)
    if as_json:
        sys.stdout.write(_json(machine, lines))
        return
    console.print(findings_table(lines))
    console.print(summary(lines))


def _json(machine: Machine, lines: Sequence[Finding]) -> str:
    from planner.codec import encode

    data = {"machine": encode(machine), "findings": [encode(line) for line in lines]}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
