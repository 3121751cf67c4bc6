"""Ranks as processes of their own on gloo: started, given a job, waited for, and ended whatever
happens.

Scope: helpers. A job is a function of a module; it gets the group and a case, and what it returns
is brought back.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import distributed as dist

from memo.parallel.contracts import SequenceGroup
from memo.parallel.wire import Wire

Job = Callable[..., Any]
"""Called with the group's wire and the arguments given."""

LIMIT_S = 60.0
"""Much more than any job takes, on a busy machine too."""

TIMEOUT_S = 30.0
"""Of a collective; more than ranks are apart, on a busy machine too."""

_PRELOADED = [
    "tests.distributed.ranks",
    "tests.distributed.jobs",
    "tests.distributed.models",
    "tests.distributed.calls",
    "tests.distributed.engines",
    "tests.distributed.trainers",
    "tests.distributed.accelerated",
]


def run_ranks(
    job: Job,
    ranks: int,
    folder: Path,
    *args: Any,
    limit_s: float = LIMIT_S,
    timeout_s: float = TIMEOUT_S,
) -> list[Any]:
    """What `job(wire, *args)` returns on every rank. `timeout_s`: the process group's.

    Raises:
        AssertionError: with the traceback of the first rank that failed.
        TimeoutError: when they were not done in time; they are killed.
    """
    folder = Path(mkdtemp(dir=folder))
    # A server that has the modules forks ranks in a tenth of a second; it ends with this process.
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    processes: list[BaseProcess] = [
        context.Process(
            target=_run, args=(job, rank, ranks, str(folder), timeout_s, args), daemon=True
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        _wait(processes, folder, time.monotonic() + limit_s)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.result", weights_only=False) for rank in range(ranks)]


def _wait(processes: list[BaseProcess], folder: Path, deadline: float) -> None:
    while any(process.is_alive() for process in processes):
        _raise_failure(folder)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(processes)} ranks were not done in time")
        time.sleep(0.02)
    _raise_failure(folder)
    codes = [process.exitcode for process in processes]
    assert not any(codes), f"ranks ended with {codes}"


def _raise_failure(folder: Path) -> None:
    for failure in sorted(folder.glob("*.failure")):
        raise AssertionError(f"rank {failure.stem}: {failure.read_text(encoding='utf-8')}")


def _run(
    job: Job, rank: int, ranks: int, folder: str, timeout_s: float, args: tuple[Any, ...]
) -> None:
    place = Path(folder)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{place / 'rendezvous'}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout_s),
        )
        result = job(Wire(SequenceGroup.of()), *args)
        torch.save(result, place / f"{rank}.result")
        dist.barrier()  # or a rank that is done first would end the others' connections
        dist.destroy_process_group()
    except Exception:
        half = place / f"{rank}.half"
        half.write_text(traceback.format_exc(), encoding="utf-8")
        half.rename(place / f"{rank}.failure")
        raise
