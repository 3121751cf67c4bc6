"""What the user sees of a bench: the progress bar, the table, what is best.

Scope: rich. Nothing is decided or measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ssd.bench.contracts import FIO, FIO_LARGE_PAGES, BenchPlan, Case, Op, Result
from ssd.settings import Setting

_NOTES = {
    "": "GB: 1e9 bytes; medians of {rounds} interleaved rounds; in brackets CPU seconds for each "
    "GB, of the whole process (fio: of its job, without its start)",
    FIO_LARGE_PAGES: f"{FIO_LARGE_PAGES}: fio with its memory on 2 MiB pages, as ours is",
}


class Bar:
    """A progress bar that is drawn between passes only: a thread that draws it ten times a second
    would be counted as the engines' CPU time.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, passes: int, written_bytes: int) -> None:
        self._progress.console.print(
            f"{passes:,} passes, {written_bytes / 1e9:,.0f} GB written", style="dim"
        )
        # One ahead: a pass is told when it begins.
        self._task = self._progress.add_task("writing the file", total=passes, completed=-1)
        self._progress.refresh()

    def advance(self, engine: str, case: Case) -> None:
        if self._task is not None:
            description = f"{case.op} {size(case.block_bytes)} x {case.depth}, {engine}"
            self._progress.update(self._task, advance=1, description=description, refresh=True)

    def end(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=1, description="measured", refresh=True)


@contextmanager
def pass_bar(console: Console) -> Iterator[Bar]:
    """For one directory."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        yield Bar(progress)


def result_table(results: Sequence[Result], best: Setting | None) -> Table:
    """A row for each block size, depth and operation, a column for each engine."""
    engines = list(dict.fromkeys(result.engine for result in results))
    table = Table(title=f"{results[0].directory}", title_justify="left")
    for name in ("block", "depth", ""):
        table.add_column(name, justify="right" if name else "left")
    for engine in engines:
        table.add_column(f"{engine}, GB/s", justify="right")
    cells = {(r.block_bytes, r.depth, r.op, r.engine): _cell(r, best) for r in results}
    for block_bytes, depth, op in dict.fromkeys(key[:3] for key in cells):
        row = [cells.get((block_bytes, depth, op, engine), "-") for engine in engines]
        table.add_row(size(block_bytes), str(depth), str(op), *row, end_section=op is Op.MIXED)
    return table


def explanation(plan: BenchPlan, results: Sequence[Result]) -> Iterator[str]:
    """The lines below the table."""
    engines = {result.engine for result in results}
    for engine, note in _NOTES.items():
        if not engine or engine in engines:
            yield note.format(rounds=plan.rounds)
    left_out = len(set(plan.block_bytes)) * len(set(plan.depths)) - len(plan.settings())
    if left_out:
        yield f"{left_out} left out: more than a quarter of the file would be in flight"


def verdict(results: Sequence[Result], best: Setting) -> str:
    """The best setting, and how it compares with fio at the same."""
    text = (
        f"best: {best.engine}, blocks of {size(best.block_bytes)}, depth {best.depth}: "
        f"writes {best.write_bytes_per_s / 1e9:.2f} GB/s, "
        f"reads {best.read_bytes_per_s / 1e9:.2f} GB/s, "
        f"{best.cpu_s_per_gb:.3f} CPU s/GB"
    )
    for fio in (FIO, FIO_LARGE_PAGES):
        same = {
            result.op: result.bytes_per_s
            for result in results
            if (result.engine, result.block_bytes, result.depth)
            == (fio, best.block_bytes, best.depth)
        }
        if same:
            write = best.write_bytes_per_s / same[Op.WRITE]
            read = best.read_bytes_per_s / same[Op.READ]
            text += f"; {write:.2f} and {read:.2f} of {fio}"
    return text


def size(size_bytes: int) -> str:
    """In the largest unit that leaves no fraction."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} B"


def _cell(result: Result, best: Setting | None) -> str:
    text = f"{result.bytes_per_s / 1e9:.2f} ({result.cpu_s_per_gb:.3f})"
    is_best = best is not None and (result.engine, result.block_bytes, result.depth) == (
        best.engine,
        best.block_bytes,
        best.depth,
    )
    return f"[bold green]{text}[/]" if is_best else text
