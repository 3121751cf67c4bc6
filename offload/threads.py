"""Streams of a plain CPU: a thread for each lane, and compute is the thread that calls.

Scope: `offload.streams` for tensors that live on the CPU, where "device" and host are one memory.
Copies run beside compute, on what the cores have left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import numpy
import torch
from torch import Tensor

from offload.contracts import TransferError
from offload.host_memory import host_memory
from offload.streams import Event, Stream


class ThreadEvent:
    """A point in a thread's work: a future of the time at which it was passed."""

    def __init__(self, passed_s: Future[float]) -> None:
        self.passed_s = passed_s

    def is_done(self) -> bool:
        return self.passed_s.done()

    def synchronize(self) -> None:
        self.passed_s.result()

    def seconds_since(self, earlier: Event) -> float:
        start = cast(ThreadEvent, earlier).passed_s
        failed = self.passed_s.exception() or start.exception()
        return 0.0 if failed else self.passed_s.result() - start.result()


class ThreadLane:
    """Runs what is submitted, in order, in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"memo-{name}")
        self._error: BaseException | None = None

    def record(self) -> ThreadEvent:
        return ThreadEvent(self._executor.submit(self._pass))

    def wait(self, event: Event) -> None:
        if not event.is_done():
            self._executor.submit(self._run, cast(ThreadEvent, event).passed_s.result)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._executor.submit(self._run, partial(_copy, target, source))

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for it
            self._error = self._error or error

    def _pass(self) -> float:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return time.perf_counter()


class HostThread:
    """The calling thread as a stream: what it submits is over when it returns."""

    def record(self) -> ThreadEvent:
        passed: Future[float] = Future()
        passed.set_result(time.perf_counter())
        return ThreadEvent(passed)

    def wait(self, event: Event) -> None:
        try:
            cast(ThreadEvent, event).passed_s.result()
        except Exception as error:
            raise TransferError(f"a copy between tiers failed: {error}") from error

    def copy(self, target: Tensor, source: Tensor) -> None:
        _copy(target, source)

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()


class ThreadStreams:
    """See `offload.streams.Streams`. Threads start with their first copy and end with this."""

    def __init__(self) -> None:
        self.d2h: Stream = ThreadLane("d2h")
        self.h2d: Stream = ThreadLane("h2d")
        self._host = HostThread()

    def current(self) -> Stream:
        return self._host

    def landing(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8)

    def synchronize(self) -> None:
        for lane in (self.d2h, self.h2d):
            self._host.wait(lane.record())

    def share(self, memory: Tensor) -> None:
        """Nothing to do: there is one calling thread, and no memory that is used again early."""

    def host_memory(self, size_bytes: int) -> Tensor:
        return host_memory(size_bytes)


def _copy(target: Tensor, source: Tensor) -> None:
    # numpy copies in this thread alone, without the interpreter's lock; torch would call in all
    # its threads, which are busy with compute.
    numpy.copyto(target.numpy(), source.numpy())
