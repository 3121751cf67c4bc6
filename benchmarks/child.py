"""The process that measures one job: `python -m benchmarks.child JOB.json SAMPLE.json`.

Each phase has a process of its own. Peaks need `exact_malloc` from the start, which makes every
step slower by its page faults, so times are taken without it; profiles disturb both.

The activation peak is the highest resident memory during one full forward and backward, minus
the resident memory before it, when weights and gradient buffers are already allocated and a
short step has loaded the code. Whatever a case allocates for the long step, buffers that it would
keep for later steps too, counts. On CUDA: the same, of the allocator's live bytes. (There, looking
at peaks disturbs nothing, so that timed steps have them too.)
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import memo
from benchmarks import accounting, card, flops
from benchmarks.cases import is_memo
from benchmarks.contracts import Job, LaneUse, Outcome, Phase, Sample
from benchmarks.cut import attention_cut
from benchmarks.profiling import profile_step
from benchmarks.step import SHORT_TOKENS, Step
from memo.measure import KIB, PeakMemory, exact_malloc, is_out_of_memory, limit_memory
from offload import Tier


def measure_time(job: Job) -> Sample:
    step = Step(job)
    step.timed(job.tokens)  # fills malloc's heap and the kernel caches
    _forget(step, job)
    cpu_before_s = time.process_time()
    timed = [step.timed(job.tokens) for _ in range(job.steps)]
    cpu_s = time.process_time() - cpu_before_s
    step_s = [seconds for seconds, _ in timed]
    return replace(
        _done(job),
        step_s=step_s,
        cores_used=cpu_s / sum(step_s),
        loss=timed[-1][1],
        step_flops=flops.step_flops(job.shape, job.tokens),
        **_held(step, job, steps=job.steps),
    )


def _forget(step: Step, job: Job) -> None:
    """Let counts and peaks start here."""
    card.reset_peaks(step.device)
    if is_memo(job.case):
        memo.report(step.model, reset=True)


def _held(step: Step, job: Job, steps: int) -> dict[str, Any]:
    """The fields of a sample that say what memory and lanes did since `_forget`."""
    found: dict[str, Any] = dict(card.peaks(step.device))
    if is_memo(job.case):
        report = memo.report(step.model)
        found["host_bytes"] = report.peak_bytes[Tier.HOST]
        found["exposed_s"] = sum(lane.exposed_s for lane in report.lanes.values()) / steps
        found["lanes"] = {
            str(name): LaneUse(
                moved_bytes=lane.moved_bytes // steps,
                busy_s=lane.busy_s / steps,
                exposed_s=lane.exposed_s / steps,
            )
            for name, lane in report.lanes.items()
        }
    return found


def measure_peak(job: Job) -> Sample:
    exact_malloc()
    step = Step(job)
    step.timed(min(job.tokens, SHORT_TOKENS))
    step.zero_grad()
    with PeakMemory(step.device) as peak:
        loss = step.run(job.tokens)
    return replace(
        _done(job),
        growth_bytes=peak.growth_bytes,
        base_bytes=peak.base_bytes,
        method=peak.method,
        loss=loss,
    )


def measure_profile(job: Job) -> Sample:
    step = Step(job)
    step.timed(job.tokens)
    step.zero_grad()
    return replace(_done(job), profile=profile_step(lambda: step.run(job.tokens)))


def measure_fit(job: Job) -> Sample:
    """One step within `limit_bytes` or the card's memory, model and all; what passes it is
    refused.
    """
    if job.device == "cpu":
        exact_malloc()
    with _limit(job), attention_cut(job.attention_tokens):
        step = Step(job)
        accounts = job.account_layers > 0
        layer_bytes = accounting.held_by_layer(step, job) if accounts else 0
        with accounting.held(step, job, layer_bytes):
            _forget(step, job)
            seconds, loss = step.timed(job.tokens)
        found = _held(step, job, steps=1)
    return replace(
        _done(job),
        step_s=[seconds],
        loss=loss,
        layer_bytes=layer_bytes,
        layer_host_bytes=found.get("host_bytes", 0) // job.shape.layers,
        **found,
    )


def _limit(job: Job) -> AbstractContextManager[object]:
    """The kernel's; a card refuses what it doesn't have by itself."""
    return nullcontext() if job.limit_bytes is None else limit_memory(job.limit_bytes)


def measure_rate(job: Job) -> Sample:
    return replace(_done(job), matmul_flops_per_s=card.matmul_flops_per_s(torch.device(job.device)))


MEASURE = {
    Phase.TIME: measure_time,
    Phase.PEAK: measure_peak,
    Phase.PROFILE: measure_profile,
    Phase.FIT: measure_fit,
    Phase.RATE: measure_rate,
}


def _done(job: Job) -> Sample:
    """The sample of a job that ends now, for its phase to fill in."""
    return Sample(
        case=job.case,
        tokens=job.tokens,
        phase=job.phase,
        outcome=Outcome.OK,
        layers=job.shape.layers,
        process_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB,
    )


def _is_refused(error: BaseException) -> bool:
    """Whether memory was refused, pinned memory included, which CUDA and memo tell in words."""
    words = ("out of memory", "could not pin")
    return is_out_of_memory(error) or any(text in str(error) for text in words)


def _out_of_memory(job: Job, error: BaseException) -> Sample:
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    return replace(_done(job), outcome=Outcome.DOES_NOT_FIT, message=message)


def main(job_path: Path, sample_path: Path) -> None:
    logging.set_verbosity_error()
    job = Job.from_json(json.loads(job_path.read_text()))
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    card.prepare(torch.device(job.device))
    try:
        sample = MEASURE[job.phase](job)
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_refused(error):
            raise
        sample = _out_of_memory(job, error)
    sample_path.write_text(json.dumps(sample.to_json()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
