"""Predictions held against measurements: peak memory and step time of small models on this machine.

::

    python -m benchmarks.prediction --spill-dir /nvme --json prediction.json
    python -m benchmarks.prediction --models llama gpt2 --lengths 2050 --placements keep host
    python -m benchmarks.prediction --device cuda --models llama-3.2-1b --lengths 32768

Run from the repository root. Eleven families, three lengths, four placements. What a step takes is
predicted by the planner's own path: the machine is probed once; for every model and length one
process times a layer of each class and predicts every placement; then each case is measured in a
process of its own. `--placements planned` adds a plan that was sought for a device on which not
everything fits. In this file: the command line, and the order of the work. Exit status 1 when a
case failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import context, prediction_tables
from benchmarks.prediction_contracts import PLACEMENTS, PLANNED, Case, Job, Result, Work
from benchmarks.prediction_models import LARGE, MODELS
from benchmarks.runner import ROOT, TAIL_LINES

LENGTHS = (2050, 4099, 8195)
"""Each misses every boundary of tiles."""


class ChildError(Exception):
    """A child process ended without a result; the message is the end of what it wrote."""


def parser() -> ArgumentParser:
    """The options."""
    found = ArgumentParser("benchmarks.prediction", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--models", nargs="+", choices=(*MODELS, *LARGE), default=list(MODELS))
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument("--lengths", type=context.count, nargs="+", default=list(LENGTHS))
    found.add_argument(
        "--placements", nargs="+", choices=(*PLACEMENTS, PLANNED), default=list(PLACEMENTS)
    )
    found.add_argument("--steps", type=context.count, default=3, help="timed, per case")
    found.add_argument("--threads", type=context.count, help="torch's (default: torch's choice)")
    found.add_argument("--spill-dir", type=Path, default=Path(tempfile.gettempdir()))
    found.add_argument("--json", type=Path, help="write everything here, after each case")
    found.add_argument("--timeout-s", type=float, default=600.0, help="per process")
    return found


@dataclass(slots=True)
class Run:
    """All cases, in turns. `pattern` is the job of which work, model, length and placements are
    replaced.
    """

    pattern: Job
    timeout_s: float
    json_path: Path | None
    cases: list[Case] = field(default_factory=list)
    calibration_s: list[float] = field(default_factory=list)

    def probe(self) -> None:
        """Look at the machine; every prediction is for it."""
        hardware = self._child(replace(self.pattern, work=Work.PROBE)).hardware
        self.pattern = replace(self.pattern, hardware=hardware)

    def turn(self, model: str, tokens: int, placements: Sequence[str]) -> Iterator[Case]:
        """Predict a model's cases at one length, then measure one after another."""
        with tempfile.TemporaryDirectory() as folder:
            job = replace(self.pattern, model=model, tokens=tokens, placements=tuple(placements))
            job = replace(job, work=Work.PREDICT, plan_path=str(Path(folder, "plan.json")))
            try:
                told = self._child(job)
            except ChildError as error:
                for placement in placements:
                    yield self._add(Case(**_names(job, placement), problem=f"predict: {error}"))
                return
            self.calibration_s.append(told.calibration_s)
            for placement in placements:
                yield self._add(self._measured(job, placement, told))

    def _measured(self, job: Job, placement: str, told: Result) -> Case:
        predicted = told.predicted[placement]
        case = Case(**_names(job, placement), predicted=predicted)
        try:
            found = self._child(replace(job, work=Work.MEASURE, placements=(placement,)))
        except ChildError as error:
            return replace(case, problem=f"measure: {error}")
        return replace(case, measured=found.measured)

    def _child(self, job: Job) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            job_path, result_path = Path(folder, "job.json"), Path(folder, "result.json")
            job_path.write_text(json.dumps(job.to_json()))
            command = [sys.executable, "-m", "benchmarks.prediction_child"]
            try:
                ended = subprocess.run(
                    [*command, str(job_path), str(result_path)],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=self.timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise ChildError(f"no result after {self.timeout_s:.0f} s") from error
            if not result_path.exists():
                tail = "\n".join(ended.stderr.strip().splitlines()[-TAIL_LINES:])
                raise ChildError(tail or f"exit status {ended.returncode}")
            return Result.from_json(json.loads(result_path.read_text()))

    def _add(self, case: Case) -> Case:
        self.cases.append(case)
        if self.json_path is not None:
            self.json_path.write_text(json.dumps(self._document(), indent=1))
        return case

    def _document(self) -> dict[str, Any]:
        summary = prediction_tables.summary_of(self.cases)
        return {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": self.pattern.hardware,
            "summary": None if summary is None else asdict(summary),
            "calibration_s": self.calibration_s,
            "cases": [asdict(case) | {"errors": _errors(case)} for case in self.cases],
        }


def _names(job: Job, placement: str) -> dict[str, Any]:
    return {"model": job.model, "tokens": job.tokens, "placement": placement}


def _errors(case: Case) -> dict[str, float] | None:
    errors = prediction_tables.errors_of(case)
    return None if errors is None else asdict(errors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    found = parser()
    options = found.parse_args(arguments)
    if not options.spill_dir.is_dir():
        found.error(f"--spill-dir: there is no directory {options.spill_dir}")
    pattern = Job(
        work=Work.PROBE,
        steps=options.steps,
        spill_dir=str(options.spill_dir),
        threads=options.threads,
        device=options.device,
    )
    run = Run(pattern, options.timeout_s, options.json)
    console = context.console()
    run.probe()
    _all(run, options.models, options.lengths, options.placements, console)
    console.print(prediction_tables.results(run.cases))
    if (summary := prediction_tables.summary_of(run.cases)) is not None:
        console.print(prediction_tables.line(summary))
    return 1 if any(case.problem for case in run.cases) else 0


def _all(
    run: Run,
    models: Sequence[str],
    lengths: Sequence[int],
    placements: Sequence[str],
    console: Console,
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(models) * len(lengths) * len(placements))
        for tokens in lengths:
            for model in models:
                progress.update(task, description=f"{model}, {tokens:,} tokens")
                for _ in run.turn(model, tokens, placements):
                    progress.advance(task)


if __name__ == "__main__":
    sys.exit(main())
