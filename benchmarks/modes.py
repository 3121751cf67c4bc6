"""The three things that the benchmark does: compare cases, search the longest, show profiles.

Each runs its jobs with a progress bar, hands every sample to the archive, and prints tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import limits, runner, tables
from benchmarks.archive import Archive
from benchmarks.contracts import Job, Outcome, Phase, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What all modes need: `job` is the pattern of which case, length and phase are replaced."""

    job: Job
    cases: Sequence[str]
    tokens: Sequence[int]
    timeout_s: float
    archive: Archive
    console: Console

    def measure(self, job: Job) -> Sample:
        sample = runner.run(job, self.timeout_s)
        self.archive.add(sample)
        return sample


def compare(run: Run, phases: Sequence[Phase], *, repeats: int, plot: Path | None) -> None:
    """Times (repeated) and peaks of every case at every length: a table, and a picture if asked."""
    jobs = list(
        runner.rounds(
            run.job,
            cases=run.cases,
            tokens=run.tokens,
            repeats=repeats,
            phases=phases,
        )
    )
    with _progress(run.console) as progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=_name(job))
            run.measure(job)
            progress.advance(task)
    rows = run.archive.rows()
    methods = {sample.method for sample in run.archive.samples if sample.method}
    run.console.print(tables.results(run.job.shape, rows, ", ".join(sorted(methods))))
    if plot is not None:
        from benchmarks import plots  # matplotlib is an extra

        plots.save(run.job.shape, rows, plot)


def grow_layers(run: Run, layers: Sequence[int]) -> None:
    """Peaks of every case and length at several numbers of layers."""
    shapes = [replace(run.job.shape, layers=number) for number in layers]
    jobs = [
        replace(run.job, shape=shape, case=case, tokens=tokens, phase=Phase.PEAK)
        for case in run.cases
        for tokens in run.tokens
        for shape in shapes
    ]
    with _progress(run.console) as progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=f"{_name(job)}, {job.shape.layers} layers")
            run.measure(job)
            progress.advance(task)


def search_longest(run: Run, *, limit_bytes: int, step_tokens: int, max_tokens: int) -> None:
    """The longest sequence that each case trains within `limit_bytes`, from the least length on."""
    pattern = replace(run.job, phase=Phase.FIT, limit_bytes=limit_bytes)
    with _progress(run.console) as progress:
        task = progress.add_task("", total=len(run.cases))
        for case in run.cases:

            def probe(tokens: int, case: str = case) -> Sample:
                job = replace(pattern, case=case, tokens=tokens)
                progress.update(task, description=_name(job))
                return run.measure(job)

            found = limits.longest(
                case,
                probe,
                start_tokens=min(run.tokens),
                step_tokens=step_tokens,
                max_tokens=max_tokens,
            )
            run.archive.add_longest(found)
            progress.advance(task)
    run.console.print(tables.longest(run.job.shape, run.archive.longest, limit_bytes))


def show_profiles(run: Run) -> None:
    """Of every case and length: time by kind of work and operator, and who holds the peak."""
    jobs = list(
        runner.rounds(
            run.job, cases=run.cases, tokens=run.tokens, repeats=1, phases=(Phase.PROFILE,)
        )
    )
    with _progress(run.console) as progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=_name(job))
            _print_profile(run.console, run.measure(job))
            progress.advance(task)


def _print_profile(console: Console, sample: Sample) -> None:
    if sample.outcome is not Outcome.OK or sample.profile is None:
        console.print(f"{sample.case}: {sample.outcome}: {sample.message}", markup=False)
        return
    for table in tables.profile(sample.case, sample.tokens, sample.profile):
        console.print(table)


def _name(job: Job) -> str:
    return f"{job.phase}: {job.case}, {job.tokens:,} tokens"


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress
