"""The interpreter's lock: an engine that waits takes nothing from a thread that computes, and one
that streams takes no more than one of four threads in plain system calls.

Timing on shared machines: no other test runs beside these, each figure is the median of ratios of
neighbouring measurements, what is compared alternates, and a bound that is met in one of several
attempts is met.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from ssd.buffers import aligned_buffer
from ssd.contracts import EngineKind, Operation, Piece, SpoolFile
from ssd.files import close_file, open_file
from ssd.request_queue import RequestQueue
from ssd.requests import Request
from tests.ssd.disk import MIB, engine_of

pytestmark = pytest.mark.alone

WINDOW_S = 0.1
ROUNDS = 7
ATTEMPTS = 4
NOISE = 0.05
BLOCK = 4 * MIB
BLOCKS = 16

Step = Callable[[], object]


class Load(Protocol):
    """Something that goes on beside compute."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


def in_python() -> None:
    """Compute under the lock all the time."""
    for _ in range(500):
        pass


def in_c(data: bytes = bytes(256 << 10)) -> None:
    """Compute without the lock, and take it every 0.2 ms or so, as steps of torch do."""
    hashlib.sha256(data)


def _speed(step: Step) -> float:
    count, start_s = 0, time.perf_counter()
    while (now_s := time.perf_counter()) - start_s < WINDOW_S:
        step()
        count += 1
    return count / (now_s - start_s)


def kept(load: Load, step: Step, *, of: Load | None = None) -> float:
    """The share of its speed that compute keeps beside a load: of that when alone, or beside
    another.
    """
    shares = []
    for number in range(ROUNDS):
        pair: list[Load | None] = [load, of]
        first, second = pair if number % 2 else reversed(pair)
        speeds = {first: _speed_beside(first, step), second: _speed_beside(second, step)}
        shares.append(speeds[load] / speeds[of])
    return statistics.median(shares)


def _speed_beside(load: Load | None, step: Step) -> float:
    if load is None:
        return _speed(step)
    load.begin()
    try:
        return _speed(step)
    finally:
        load.end()


class Silent:
    """A read of a pipe into which nobody writes, and a thread that waits for it."""

    def __init__(self, queue: RequestQueue, file: SpoolFile, writing: int) -> None:
        self._queue, self._file, self._writing = queue, file, writing
        self._request: Request | None = None
        self._waiter = threading.Thread()

    def begin(self) -> None:
        piece = Piece(self._file, 0, aligned_buffer(4096))
        self._request = self._queue.submit(Operation.READ, [piece])
        self._waiter = threading.Thread(target=self._request.wait)
        self._waiter.start()
        time.sleep(0.01)

    def end(self) -> None:
        assert self._request is not None
        assert not self._request.is_done(), "it was not waited for"
        os.write(self._writing, bytes(4096))
        self._waiter.join(timeout=20)
        assert self._request.is_done()


class Streaming:
    """Writes and reads in turn through an engine, eight at a time."""

    def __init__(self, queue: RequestQueue, file: SpoolFile) -> None:
        self._queue, self._file = queue, file
        self._buffers = [aligned_buffer(BLOCK) for _ in range(BLOCKS)]
        self._is_over = threading.Event()
        self._thread = threading.Thread()

    def begin(self) -> None:
        self._is_over.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        requests: deque[Request] = deque()
        index = 0
        while not self._is_over.is_set():
            operation = Operation.READ if index % 2 else Operation.WRITE
            piece = Piece(self._file, index % BLOCKS * BLOCK, self._buffers[index % BLOCKS])
            requests.append(self._queue.submit(operation, [piece]))
            index += 1
            if len(requests) >= 8:
                requests.popleft().wait()
        for request in requests:
            request.wait()


class PlainLoops:
    """Four threads, each in one `pwritev` or `preadv` after another, and in nothing else."""

    def __init__(self, file: SpoolFile, threads: int = 4) -> None:
        self._file = file
        self._buffers = [aligned_buffer(BLOCK) for _ in range(threads)]
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        self._is_over.clear()
        self._threads = [
            threading.Thread(target=self._run, args=(number, buffer))
            for number, buffer in enumerate(self._buffers)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, buffer: memoryview) -> None:
        buffers, start = [buffer], number * BLOCKS // len(self._buffers) * BLOCK
        while not self._is_over.is_set():
            os.pwritev(self._file.fd, buffers, start)
            os.preadv(self._file.fd, buffers, start)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    """Written once: new blocks are slower."""
    file = open_file(tmp_path, BLOCKS * BLOCK)
    buffer = aligned_buffer(BLOCK)
    for index in range(BLOCKS):
        os.pwritev(file.fd, [buffer], index * BLOCK)
    yield file
    close_file(file)


@contextmanager
def _pipe() -> Iterator[tuple[SpoolFile, int]]:
    reading, writing = os.pipe()
    try:
        yield SpoolFile(reading, Path("/pipe"), 4096), writing
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("step", [in_python, in_c])
def test_waiting_takes_nothing_from_compute(file: SpoolFile, step: Step) -> None:
    with (
        _pipe() as (pipe, writing),
        closing(RequestQueue(engine_of(EngineKind.URING, [file]))) as queue,
    ):
        load = Silent(queue, pipe, writing)
        shares = (kept(load, step) for _ in range(ATTEMPTS))
        assert any(share >= 0.95 for share in shares)


@pytest.mark.parametrize("step", [in_python, in_c])
def test_streaming_takes_no_more_than_threads_in_system_calls_do(
    file: SpoolFile, step: Step
) -> None:
    with closing(RequestQueue(engine_of(EngineKind.URING, [file]))) as ring:
        load, loops = Streaming(ring, file), PlainLoops(file)
        shares = (kept(load, step, of=loops) for _ in range(ATTEMPTS))
        assert any(share >= 1 - NOISE for share in shares)
