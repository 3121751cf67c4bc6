"""What the user sees of training: progress bars, and the table of the comparison. Uses rich.

Nothing is decided or measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils import logging as hf_logging

from memo.training.contracts import FIRST_TIMED_STEP, MEMORY_STEP, CaseResult, OnStep, StepRecord
from memo.training.demo import Comparison
from memo.training.plot import GIB, LABELS, MIB

_NOTHING = "-"

# Threads that wait for each other count as working, so on a quiet machine nearly all of them do.
_BUSY_SHARE = 0.8


@contextmanager
def step_progress(console: Console) -> Iterator[Callable[[str, int, int], OnStep]]:
    """Yield what opens a bar (its name, its steps, how many are done) and returns its advance."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:

        def open_bar(description: str, steps: int, done: int) -> OnStep:
            for earlier in progress.task_ids:
                progress.stop_task(earlier)  # one that broke off before its last step
            task = progress.add_task(description, total=steps, completed=done, note="")

            def advance(record: StepRecord) -> None:
                note = f"loss {record.loss:.4f}, {record.seconds:.1f} s a step"
                progress.update(task, advance=1, note=note)

            return advance

        yield open_bar


def quiet_libraries() -> None:
    """Turn transformers' progress bars and advice off: the command line has its own."""
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()


def comparison_table(comparison: Comparison) -> Table:
    """Return the table: a column for each case, peaks, times and losses below each other."""
    results = comparison.results
    plain = next((r for r in results if r.mode == "plain" and r.fit == "done"), None)
    table = Table(title=comparison.title())
    table.add_column("")
    for result in results:
        table.add_column(LABELS[result.mode], justify="right")
    for name, cell in _rows(comparison, plain):
        table.add_row(name, *(cell(result) for result in results))
    return table


Cell = Callable[[CaseResult], str]


def _rows(comparison: Comparison, plain: CaseResult | None) -> Iterator[tuple[str, Cell]]:
    tokens = comparison.settings.tokens
    if any(result.fit != "done" for result in comparison.results):
        yield "", lambda result: "fits" if result.fit == "done" else result.fit.upper()
    yield "peak memory", lambda result: _size(result.peak_bytes)
    yield "  growth in the step", lambda result: _size(_growth_bytes(result))
    yield "  growth / plain", lambda result: _ratio(result, plain, _growth_bytes)
    yield "seconds a step", lambda result: _number(result.step_s, "{:.2f}")
    yield "  time / plain", lambda result: _ratio(result, plain, lambda case: case.step_s)
    yield "tokens a second", lambda result: _number(_tokens_per_s(result, tokens), "{:,.0f}")
    for step in range(comparison.settings.steps):
        yield f"loss, step {step + 1}", _loss_cell(step)


def explanation(comparison: Comparison) -> Iterator[str]:
    """Yield the lines below the table: how the figures were taken, and what didn't fit and why."""
    yield (
        f"memory: resident memory of the process in step {MEMORY_STEP + 1}, freed memory handed "
        f"back at once; seconds: median from step {FIRST_TIMED_STEP + 1} on"
    )
    cores = [result.cores() for result in comparison.results]
    if any(had is not None and had < _BUSY_SHARE * comparison.threads for had in cores):
        had_cores = ", ".join(_number(had, "{:.1f}") for had in cores)
        yield (
            f"other work ran beside: the cases had {had_cores} cores for {comparison.threads} "
            "threads, so the seconds are too many"
        )
    for result in comparison.results:
        if result.fit != "done":
            limit = comparison.memory_limit_bytes
            within = f" within {_size(limit)}" if limit and result.fit != "failed" else ""
            yield f"{LABELS[result.mode]}: {result.fit}{within}: {result.reason}"


def _growth_bytes(result: CaseResult) -> int:
    return result.peak_bytes - result.base_bytes


def _tokens_per_s(result: CaseResult, tokens: int) -> float | None:
    return None if result.step_s is None else tokens / result.step_s


def _loss_cell(step: int) -> Cell:
    def cell(result: CaseResult) -> str:
        return f"{result.steps[step].loss:.4f}" if step < len(result.steps) else _NOTHING

    return cell


def _size(size_bytes: int) -> str:
    if size_bytes < 0.1 * GIB:
        return f"{size_bytes / MIB:.1f} MiB" if size_bytes else _NOTHING
    return f"{size_bytes / GIB:.2f} GiB"


def _number(value: float | None, style: str) -> str:
    return _NOTHING if value is None else style.format(value)


def _ratio(
    result: CaseResult, plain: CaseResult | None, of: Callable[[CaseResult], float | None]
) -> str:
    ours, base = of(result), None if plain is None else of(plain)
    return f"{ours / base:.2f}" if ours and base else _NOTHING
