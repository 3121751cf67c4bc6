"""The command line of `memo bench`: what it takes, what it prints and writes, and how it fails.

Scope: options into a plan, results into a table, JSON and saved settings. An error is one line on
standard error and an exit status of 1, an interruption one of 130; the file that was measured on
has no name and is gone with the process.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from memo.cli_errors import one_line_errors
from memo.cli_values import parse_count, parse_list, parse_size_bytes
from memo.training.contracts import RefusedInputError

if TYPE_CHECKING:
    from ssd.bench import BenchPlan, Result
    from ssd.contracts import EngineKind

app = typer.Typer(name="bench", no_args_is_help=True, help="Measure what this machine does.")

_STDOUT = "-"
_LESS_MEMORY = "smaller --blocks or --depths"
_INTERRUPTED = "interrupted: nothing of this directory was saved, and its file is gone"


@app.callback()
def main() -> None:
    """Measure what this machine does."""


@app.command("ssd")
def bench_ssd(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Where to measure; here, if not given."),
    ] = None,
    size: Annotated[str, typer.Option(help="Of the file, such as 2GiB or 512MiB.")] = "2GiB",
    blocks: Annotated[str, typer.Option(help="Block sizes, between commas.")] = "1MiB,4MiB,16MiB",
    depths: Annotated[str, typer.Option(help="Blocks in flight, between commas.")] = "4,16,64",
    rounds: Annotated[int, typer.Option(min=1, help="Passes of each case; medians count.")] = 3,
    engines: Annotated[
        str | None,
        typer.Option(help="io_uring, threads, or both between commas; what works if not given."),
    ] = None,
    fio: Annotated[bool, typer.Option(help="Compare with fio, when it is installed.")] = True,
    json_to: Annotated[
        str | None, typer.Option("--json", help="Write a list of results; - is standard output.")
    ] = None,
    save: Annotated[
        bool, typer.Option(help="Keep each directory's best setting for wrap and plan.")
    ] = True,
) -> None:
    """Measure writing, reading and both together, for each engine, on a disk.

    The file is anonymous, and gone afterwards. The best setting is kept in ~/.cache/memo/ssd.json.
    """
    console = Console(soft_wrap=True, highlight=False, stderr=json_to == _STDOUT)
    from ssd.contracts import SpillError

    with (
        one_line_errors(SpillError, less_memory=_LESS_MEMORY, interrupted=_INTERRUPTED),
        _warnings_shown(console),
    ):
        plan = _plan(size, blocks, depths, rounds, engines, fio)
        results: list[Result] = []
        for directory in dict.fromkeys(directories or [Path()]):
            results += _measure(directory, plan, console, save=save)
        if json_to is not None:
            _write_json(results, json_to)


def _plan(
    size: str, blocks: str, depths: str, rounds: int, engines: str | None, fio: bool
) -> BenchPlan:
    from ssd.bench import BenchPlan

    try:
        return BenchPlan(
            size_bytes=parse_size_bytes("--size", size),
            block_bytes=parse_list("--blocks", blocks, parse_size_bytes),
            depths=parse_list("--depths", depths, parse_count),
            rounds=rounds,
            engines=None if engines is None else parse_list("--engines", engines, _parse_engine),
            fio=fio,
        )
    except ValueError as error:
        raise RefusedInputError(str(error)) from error


def _parse_engine(option: str, text: str) -> EngineKind:
    from ssd.bench.contracts import ENGINES

    for kind in ENGINES:
        if text.strip() == kind:
            return kind
    raise RefusedInputError(f"{option}: got {text!r}, takes {' or '.join(ENGINES)}")


def _measure(directory: Path, plan: BenchPlan, console: Console, *, save: bool) -> list[Result]:
    from memo.bench.show import explanation, pass_bar, result_table, verdict
    from ssd.bench import best_of, measure_directory
    from ssd.settings import save_setting

    with pass_bar(console) as bar:
        try:
            results = measure_directory(directory, plan, on_begin=bar.begin, on_pass=bar.advance)
        except ValueError as error:  # a block that is not aligned, a directory that is a device
            raise RefusedInputError(str(error)) from error
        bar.end()
    best = best_of(results)
    console.print(result_table(results, best))
    for line in explanation(plan, results):
        console.print(line, style="dim")
    if best is not None:
        console.print(verdict(results, best))
        if save:
            console.print(f"saved: {save_setting(directory, best)}")
    return results


def _write_json(results: Sequence[Result], target: str) -> None:
    text = json.dumps([result.as_json() for result in results], indent=2) + "\n"
    if target == _STDOUT:
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


@contextmanager
def _warnings_shown(console: Console) -> Iterator[None]:
    """Each of the disk's warnings once, as a line; others as ever."""
    from ssd.contracts import SpillWarning

    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", SpillWarning)
        default = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, SpillWarning):
                default(message, category, *rest, **more)
            elif str(message) not in said:
                said.add(str(message))
                console.print(f"note: {message}", style="yellow", markup=False)

        warnings.showwarning = show
        yield
