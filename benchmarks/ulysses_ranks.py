"""Ranks as processes of their own on gloo: started, listened to, and ended whatever happens.

Scope: running one function on every rank, for benchmarks on one machine. What a rank says on its
way, and what it returns, come back one after another.
"""

from __future__ import annotations

import queue
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed as dist

Say = Callable[[Any], None]
"""Hands something that can be pickled to the process that listens."""

Job = Callable[..., Any]
"""A function of a module: called on every rank with a `Say`, and the arguments given."""

_POLL_S = 0.5
_GRACE_S = 10.0
"""Between a rank's last word and its end."""


class RankError(RuntimeError):
    """A rank failed, or ended without a result."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a rank said: "said" on its way, "done" with what the job returned, or "failed" with a
    traceback.
    """

    rank: int
    kind: Literal["said", "done", "failed"]
    value: Any


def listen(job: Job, ranks: int, *args: Any, limit_s: float) -> Iterator[Word]:
    """Run `job(say, *args)` on `ranks` processes, with `torch.distributed` set up among them and
    one thread each; yields what they say until all are done.

    Raises:
        RankError: with the traceback of the first rank that failed.
        TimeoutError: when they are not done after `limit_s` seconds.
    """
    with tempfile.TemporaryDirectory() as folder, _started(job, ranks, folder, args) as running:
        processes, words = running
        deadline, done = time.monotonic() + limit_s, 0
        while done < ranks:
            word = _next(words, processes, deadline)
            if word.kind == "failed":
                raise RankError(f"rank {word.rank}: {word.value}")
            done += word.kind == "done"
            yield word
        for process in processes:
            process.join(_GRACE_S)


def results(job: Job, ranks: int, *args: Any, limit_s: float) -> list[Any]:
    """What the job returned, by rank; what ranks say on their way is dropped."""
    found = {
        word.rank: word.value
        for word in listen(job, ranks, *args, limit_s=limit_s)
        if word.kind == "done"
    }
    return [found[rank] for rank in range(ranks)]


@contextmanager
def _started(
    job: Job, ranks: int, folder: str, args: tuple[Any, ...]
) -> Iterator[tuple[list[SpawnProcess], Any]]:
    context = get_context("spawn")
    words = context.Queue()
    processes = [
        context.Process(target=_run, args=(job, rank, ranks, folder, words, args), daemon=True)
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            process.start()
        yield processes, words
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _next(words: Any, processes: Sequence[SpawnProcess], deadline: float) -> Word:
    while True:
        try:
            word: Word = words.get(timeout=_POLL_S)
        except queue.Empty:
            _check_alive(processes, words)
        else:
            return word
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(processes)} ranks were not done in time")


def _check_alive(processes: Sequence[SpawnProcess], words: Any) -> None:
    # A rank that is killed (memory) says nothing, and the others would wait for it.
    died = [process.exitcode for process in processes if process.exitcode]
    if died and words.empty():
        raise RankError(f"a rank ended with {died[0]} and no result")


def _run(job: Job, rank: int, ranks: int, folder: str, words: Any, args: tuple[Any, ...]) -> None:
    def say(value: Any) -> None:
        words.put(Word(rank, "said", value))

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{Path(folder, 'rendezvous')}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(minutes=30),  # ranks on few cores wait long for one another
        )
        result = job(say, *args)
        dist.barrier()  # or a rank that is done first would end the others' connections
        dist.destroy_process_group()
        words.put(Word(rank, "done", result))
    except Exception:  # noqa: BLE001 - whatever it is, the listener tells it
        words.put(Word(rank, "failed", traceback.format_exc()))
