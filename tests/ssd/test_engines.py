"""Both engines: single attempts move the bytes they say, beside the caller, and end once."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ssd.buffers import aligned_buffer
from ssd.contracts import Attempt, Engine, EngineKind, Operation, Piece, SpillWarning, SpoolFile
from ssd.files import close_file, open_file
from tests.ssd.disk import KINDS, MIB, engine_of, random_buffer, skip_where_little_is_locked


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    file = open_file(tmp_path, 16 * MIB)
    yield file
    close_file(file)


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, file: SpoolFile) -> Iterator[Engine]:
    kind: EngineKind = request.param
    with closing(engine_of(kind, [file])) as engine:
        yield engine


def _run(engine: Engine, operation: Operation, piece: Piece) -> int:
    results: queue.SimpleQueue[int] = queue.SimpleQueue()
    engine.start(Attempt(operation, piece, results.put))
    return results.get(timeout=20)


def test_the_engine_is_of_the_kind_asked_for(engine: Engine) -> None:
    assert engine.name in KINDS
    assert type(engine).__name__ == {"io_uring": "UringEngine"}.get(engine.name, "ThreadEngine")


def test_bytes_come_back_from_where_they_were_put(engine: Engine, file: SpoolFile) -> None:
    first, second = random_buffer(MIB, 1), random_buffer(3 * MIB, 2)
    assert _run(engine, Operation.WRITE, Piece(file, 5 * MIB, first)) == MIB
    assert _run(engine, Operation.WRITE, Piece(file, 6 * MIB, second)) == 3 * MIB
    back = aligned_buffer(4 * MIB)
    assert _run(engine, Operation.READ, Piece(file, 5 * MIB, back)) == 4 * MIB
    assert back[:MIB] == first
    assert back[MIB:] == second


def test_the_bytes_are_in_the_file_when_the_attempt_ends(engine: Engine, file: SpoolFile) -> None:
    source = random_buffer(MIB, 3)
    _run(engine, Operation.WRITE, Piece(file, 0, source.toreadonly()))
    back = aligned_buffer(MIB)
    assert os.preadv(file.fd, [back], 0) == MIB
    assert back == source


def test_many_attempts_are_under_way_together(engine: Engine, file: SpoolFile) -> None:
    sources = [random_buffer(64 << 10, seed) for seed in range(64)]
    results: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index, source in enumerate(sources):
        piece = Piece(file, index * (64 << 10), source)
        engine.start(Attempt(Operation.WRITE, piece, results.put))
    assert [results.get(timeout=20) for _ in sources] == [64 << 10] * 64
    back = aligned_buffer(4 * MIB)
    _run(engine, Operation.READ, Piece(file, 0, back))
    assert back == b"".join(sources)


def test_attempts_outlive_the_thread_that_started_them(engine: Engine, file: SpoolFile) -> None:
    source = random_buffer(8 * MIB, 4)
    results: queue.SimpleQueue[int] = queue.SimpleQueue()
    for start in range(0, 8 * MIB, MIB):
        attempt = Attempt(
            Operation.WRITE, Piece(file, start, source[start : start + MIB]), results.put
        )
        thread = threading.Thread(target=engine.start, args=[attempt])
        thread.start()
        thread.join()
    assert [results.get(timeout=20) for _ in range(8)] == [MIB] * 8


def test_an_attempt_says_when_it_was_taken_up(engine: Engine, file: SpoolFile) -> None:
    results: queue.SimpleQueue[int] = queue.SimpleQueue()
    attempt = Attempt(Operation.WRITE, Piece(file, 0, random_buffer(MIB)), results.put)
    engine.start(attempt)
    results.get(timeout=20)
    assert attempt.started_s is not None


def test_closing_waits_for_what_is_under_way(file: SpoolFile) -> None:
    for kind in KINDS:
        engine = engine_of(kind, [file])
        ended: list[int] = []
        for index in range(16):
            piece = Piece(file, index * MIB, random_buffer(MIB, index))
            engine.start(Attempt(Operation.WRITE, piece, ended.append))
        engine.close()
        assert ended == [MIB] * 16
        engine.close()


def test_a_file_that_the_engine_was_not_made_with_works(engine: Engine, tmp_path: Path) -> None:
    other = open_file(tmp_path, MIB)
    source, back = random_buffer(MIB, 5), aligned_buffer(MIB)
    _run(engine, Operation.WRITE, Piece(other, 0, source))
    _run(engine, Operation.READ, Piece(other, 0, back))
    assert back == source
    close_file(other)


def test_a_bad_descriptor_is_an_errno_and_the_next_attempt_runs(
    engine: Engine, file: SpoolFile
) -> None:
    buffer = random_buffer(MIB)
    bad = SpoolFile(1_000_000, Path("/nowhere"), MIB)
    assert _run(engine, Operation.WRITE, Piece(bad, 0, buffer)) == -errno.EBADF
    assert _run(engine, Operation.WRITE, Piece(file, 0, buffer)) == MIB


def test_reading_past_the_end_is_short(engine: Engine, file: SpoolFile) -> None:
    buffer = aligned_buffer(2 * MIB)
    assert _run(engine, Operation.READ, Piece(file, 15 * MIB, buffer)) == MIB
    assert _run(engine, Operation.READ, Piece(file, 16 * MIB, buffer)) == 0


def test_buffers_that_are_not_aligned_are_refused_by_the_kernel(
    engine: Engine, file: SpoolFile
) -> None:
    if not file.is_direct:
        pytest.skip("no direct I/O here")
    buffer = random_buffer(2 * MIB)[1 : MIB + 1]
    assert _run(engine, Operation.WRITE, Piece(file, 0, buffer)) == -errno.EINVAL


def test_fixed_buffers_move_the_same_bytes(file: SpoolFile) -> None:
    engine = engine_of(EngineKind.URING, [file])
    first, second = random_buffer(2 * MIB, 6), random_buffer(2 * MIB, 7)
    with closing(engine):
        try:
            assert engine.fix([first, second])
        except SpillWarning as refused:
            skip_where_little_is_locked(refused)
        part = second[MIB:]
        assert _run(engine, Operation.WRITE, Piece(file, 0, part)) == MIB
        assert _run(engine, Operation.READ, Piece(file, 0, first[MIB:])) == MIB
        assert first[MIB:] == part
        # Others, in place of those; and one that is not fixed.
        assert engine.fix([first])
        assert _run(engine, Operation.READ, Piece(file, 0, second[:MIB])) == MIB
        assert _run(engine, Operation.READ, Piece(file, 0, first[:MIB])) == MIB
        assert first[:MIB] == second[:MIB] == part


def test_threads_have_no_use_for_fixed_buffers(file: SpoolFile) -> None:
    with closing(engine_of(EngineKind.THREADS, [file])) as engine:
        assert not engine.fix([aligned_buffer(MIB)])
