"""Runs jobs in child processes, one at a time, and turns every way to end into a sample.

Order is part of the method: cases take turns within each repeat, so that a machine that gets
slower or busier meanwhile does so for all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contracts import Job, Outcome, Phase, Sample

ROOT = Path(__file__).parents[1]
KILLED = -9  # SIGKILL, which the kernel sends when the machine or the control group is full
TAIL_LINES = 5


def rounds(
    job: Job, *, cases: Sequence[str], tokens: Sequence[int], repeats: int, phases: Sequence[Phase]
) -> Iterator[Job]:
    """One job per case, length and phase; times `repeats` times over, peaks and profiles once.

    A peak hardly changes from run to run; see the spread of `growth_bytes` with more repeats by
    running the benchmark again.
    """
    for repeat in range(repeats):
        for length in tokens:
            for phase in phases:
                if repeat > 0 and phase is not Phase.TIME:
                    continue
                for case in cases:
                    yield replace(job, case=case, tokens=length, phase=phase)


def run(job: Job, timeout_s: float) -> Sample:
    """Measure `job` in a child process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        job_path, sample_path = Path(folder, "job.json"), Path(folder, "sample.json")
        job_path.write_text(json.dumps(job.to_json()))
        started_s = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.child", str(job_path), str(sample_path)]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return ended_as(job, Outcome.FAILED, f"no result after {timeout_s:.0f} s")
        wall_s = time.perf_counter() - started_s
        if sample_path.exists():
            sample = Sample.from_json(json.loads(sample_path.read_text()))
            return replace(sample, wall_s=wall_s)
        return replace(_died(job, ended), wall_s=wall_s)


def _died(job: Job, ended: subprocess.CompletedProcess[str]) -> Sample:
    tail = "\n".join(ended.stderr.strip().splitlines()[-TAIL_LINES:])
    by_signal = ended.returncode < 0
    # Within a limit, libraries that can't handle a refused block abort.
    if ended.returncode == KILLED or (by_signal and job.limit_bytes is not None):
        return ended_as(job, Outcome.DOES_NOT_FIT, f"ended by signal {-ended.returncode}: {tail}")
    return ended_as(job, Outcome.FAILED, tail or f"exit status {ended.returncode}")


def ended_as(job: Job, outcome: Outcome, message: str) -> Sample:
    """A sample of a job that gave none."""
    return Sample(
        case=job.case,
        tokens=job.tokens,
        phase=job.phase,
        outcome=outcome,
        layers=job.shape.layers,
        message=message,
    )
