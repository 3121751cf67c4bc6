"""One case of the comparison in a process of its own: `python -m memo.training.worker`.

Reads a `Job` as JSON from standard input and writes events as JSON lines to standard output:
`loaded`, `step`, `memory`, `report`, `out of memory`, `done`. Anything else that is printed goes to
standard error. The parent's side is in `compare.py`; nobody else starts this.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

import memo
from memo.measure import (
    MemoryTimeline,
    PeakMemory,
    exact_malloc,
    is_out_of_memory,
    limit_memory,
)
from memo.training.contracts import MEMORY_STEP, Job, WrapOptions
from memo.training.data import Windows
from memo.training.loop import run_step
from memo.training.models import ModelSource, load_model, wrap_model
from memo.training.optimizer import MasterAdamW

Emit = Callable[[dict[str, Any]], None]

# Of a short sequence too, the tensors that count are larger; each takes a call to the kernel.
_SMALL_BLOCK_BYTES = 64 * 1024

# What glibc raises its threshold to by itself, and no further (mallopt(3)).
_GLIBC_LARGEST_BYTES = 32 * 1024 * 1024

_ALSO_REFUSED = ("can't start new thread", "could not create a primitive")

_OOM_SCORE = Path("/proc/self/oom_score_adj")


def main() -> None:
    """Run the job that standard input describes."""
    hf_logging.disable_progress_bar()
    with _events() as emit:
        fields = json.load(sys.stdin)
        job = Job(**{**fields, "wrap": WrapOptions(**fields["wrap"])})
        try:
            with _limit(job.memory_limit_bytes):
                _run(job, emit)
        except Exception as exc:
            if not _did_not_fit(exc, job):
                raise
            emit({"event": "out of memory", "reason": str(exc).strip() or type(exc).__name__})


def _did_not_fit(exc: Exception, job: Job) -> bool:
    """Whether it was memory; with little left, threads and oneDNN give errors of their own."""
    if is_out_of_memory(exc):
        return True
    limited = job.memory_limit_bytes is not None
    return limited and any(message in str(exc) for message in _ALSO_REFUSED)


def _run(job: Job, emit: Emit) -> None:
    exact_malloc(_SMALL_BLOCK_BYTES)
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    model = load_model(ModelSource(name=job.model), dtype=getattr(torch, job.dtype))
    _prepare(model, job)
    optimizer = MasterAdamW(model, lr=job.lr, max_grad_norm=job.max_grad_norm)
    ids = torch.from_numpy(numpy.load(job.tokens_file))
    windows = Windows(ids.flatten(), tokens=ids.shape[1], seed=None)
    emit({"event": "loaded"})
    for step in range(job.steps):
        with _measured(emit) if step == MEMORY_STEP else nullcontext():
            record = run_step(model, optimizer, windows.at_step(step), step=step)
        emit({"event": "step", "record": asdict(record)})
    if job.mode == "wrapped":
        emit(
            {
                "event": "report",
                "text": str(memo.report(model, endurance_tbw=job.wrap.endurance_tbw)),
            }
        )
    emit({"event": "done"})


def _prepare(model: PreTrainedModel, job: Job) -> None:
    model.train()
    if job.mode == "checkpointing":
        model.gradient_checkpointing_enable()
    elif job.mode == "wrapped":
        wrap_model(model, job.wrap)


@contextmanager
def _measured(emit: Emit) -> Iterator[None]:
    """Measure the memory of a step, and from then on leave malloc free to be fast.

    Until here freed memory goes back at once, which makes peaks exact and steps slow. From here on
    it stays for the next step, as without our doing; the step that follows takes it in anew.
    """
    with PeakMemory() as peak, MemoryTimeline() as timeline:
        yield
    emit(
        {
            "event": "memory",
            "base_bytes": peak.base_bytes,
            "peak_bytes": peak.peak_bytes,
            "timeline": timeline.samples,
        }
    )
    exact_malloc(_GLIBC_LARGEST_BYTES)


def _limit(limit_bytes: int | None) -> AbstractContextManager[object]:
    # Should the machine run out of memory all the same, this process is to go first. It is a wish:
    # there is no such file outside Linux, and a sandbox may keep it.
    with suppress(OSError):
        _OOM_SCORE.write_text("1000")
    return nullcontext() if limit_bytes is None else limit_memory(limit_bytes)


@contextmanager
def _events() -> Iterator[Emit]:
    """Keep standard output for events; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)

        def emit(event: dict[str, Any]) -> None:
            stream.write(json.dumps(event) + "\n")
            stream.flush()

        yield emit


if __name__ == "__main__":
    main()
