"""Buffers of requests that are over: nothing holds them, and no collector is needed to let go."""

from __future__ import annotations

import errno
import gc
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ssd.buffers import aligned_buffer
from ssd.contracts import EngineKind, Operation, Piece, SpillError, SpillWarning, SpoolFile
from ssd.files import close_file, open_file
from ssd.request_queue import RequestQueue
from ssd.threads import ThreadEngine
from tests.ssd.disk import KINDS, MIB, engine_of, skip_where_little_is_locked
from tests.ssd.faulty import Fail, Fault, FaultyEngine, Short


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    file = open_file(tmp_path, 16 * MIB)
    yield file
    close_file(file)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _is_gone(memory: weakref.ref[object]) -> bool:
    # The engine's thread may still be on its way out of the request's end.
    deadline_s = time.perf_counter() + 10
    while memory() is not None and time.perf_counter() < deadline_s:
        time.sleep(0.001)
    return memory() is None


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_goes_when_its_request_is_over(kind: EngineKind, file: SpoolFile) -> None:
    with closing(RequestQueue(engine_of(kind, [file]))) as queue:
        buffer = aligned_buffer(3 * MIB)
        memory: weakref.ref[object] = weakref.ref(buffer.obj)
        pieces = [Piece(file, i * MIB, buffer[i * MIB : (i + 1) * MIB]) for i in range(3)]
        request = queue.submit(Operation.WRITE, pieces)
        request.wait()
        del buffer, pieces
        assert _is_gone(memory)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("script", [[Short(4096)], [Fail(errno.EIO)], [Fail(errno.ENOSPC)]])
def test_one_that_was_cut_short_or_failed_too(file: SpoolFile, script: list[Fault]) -> None:
    with closing(RequestQueue(FaultyEngine(ThreadEngine(), script))) as queue:
        buffer = aligned_buffer(MIB)
        memory: weakref.ref[object] = weakref.ref(buffer.obj)
        request = queue.submit(Operation.WRITE, [Piece(file, 0, buffer)])
        del buffer
        try:
            request.wait()
        except SpillError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
        assert _is_gone(memory)


@pytest.mark.usefixtures("no_collector")
def test_fixed_buffers_are_held_until_others_are_fixed(file: SpoolFile) -> None:
    engine = engine_of(EngineKind.URING, [file])
    with closing(engine):
        first, second = aligned_buffer(MIB), aligned_buffer(MIB)
        memory: list[weakref.ref[object]] = [weakref.ref(first.obj), weakref.ref(second.obj)]
        try:
            engine.fix([first])
        except SpillWarning as refused:
            skip_where_little_is_locked(refused)
        del first
        # The kernel's pins stay where they are; other memory at that address would be another's.
        assert memory[0]() is not None
        engine.fix([second])
        del second
        assert memory[0]() is None
    del engine
    assert memory[1]() is None
