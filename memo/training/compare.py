"""The comparison behind `memo demo`: the same steps trained plain, checkpointed and wrapped.

Each case has a process of its own, one after the other, with the same weights, tokens and number
of threads. A case that doesn't fit in memory is a result like any other. Nothing is shown here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import IO, Any

from memo.training.contracts import CaseResult, Job, OnStep, StepRecord

# A library that can't handle a refused allocation aborts; the kernel kills, or takes a page away.
_MEMORY_SIGNALS = (signal.SIGKILL, signal.SIGABRT, signal.SIGBUS)

_TAIL_CHARACTERS = 2000


def run_case(job: Job, *, on_step: OnStep) -> CaseResult:
    """Run one case in its own process; what goes wrong there is part of the result."""
    result = CaseResult(mode=job.mode)
    finished = False
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors, _child(job, errors) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if not line.endswith("\n"):
                break  # it was ended in the middle of a line
            event = json.loads(line)
            finished = finished or event["event"] == "done"
            result = _with_event(result, event, on_step)
        status = child.wait()
        if finished or result.fit != "done":
            return result
        return _with_death(result, status, _tail(errors))


@contextmanager
def _child(job: Job, errors: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Start the worker with its job; whatever happens here, it does not outlive the block."""
    command = [sys.executable, "-m", "memo.training.worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as child:
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(asdict(job)))
            child.stdin.close()
            yield child
        finally:
            child.kill()


def _with_event(result: CaseResult, event: dict[str, Any], on_step: OnStep) -> CaseResult:
    match event["event"]:
        case "step":
            record = StepRecord(**event["record"])
            on_step(record)
            return replace(result, steps=(*result.steps, record))
        case "memory":
            return replace(
                result,
                base_bytes=event["base_bytes"],
                peak_bytes=event["peak_bytes"],
                timeline=tuple((second, size) for second, size in event["timeline"]),
            )
        case "report":
            return replace(result, report=event["text"])
        case "out of memory":
            return replace(result, fit="out of memory", reason=event["reason"])
        case _:
            return result


def _with_death(result: CaseResult, status: int, tail: str) -> CaseResult:
    """Say how a process ended that didn't say so itself."""
    if status < 0 and -status in _MEMORY_SIGNALS:
        name = signal.Signals(-status).name
        return replace(result, fit="out of memory", reason=f"the process was ended by {name}")
    last = tail.strip().splitlines()[-1] if tail.strip() else "no message"
    return replace(result, fit="failed", reason=f"exit status {status}: {last}")


def _tail(errors: IO[str]) -> str:
    errors.seek(0)
    return errors.read()[-_TAIL_CHARACTERS:]
