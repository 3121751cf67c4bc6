"""The queue: whole requests, bounded, in time, and told what became of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from ssd.buffers import aligned_buffer
from ssd.contracts import Attempt, EngineKind, Operation, Piece, SpillError, SpillWarning, SpoolFile
from ssd.files import close_file, open_file
from ssd.request_queue import RequestQueue
from ssd.threads import ThreadEngine
from tests.ssd.disk import KINDS, MIB, engine_of, random_buffer
from tests.ssd.faulty import FaultyEngine, Stall


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    file = open_file(tmp_path, 16 * MIB)
    yield file
    close_file(file)


class _Counting(ThreadEngine):
    """Threads that count the attempts under way."""

    def __init__(self, *, threads: int) -> None:
        super().__init__(threads=threads)
        self.under_way = self.most = 0
        self._lock = threading.Lock()

    def start(self, attempt: Attempt) -> None:
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        super().start(Attempt(attempt.operation, attempt.piece, partial(self._end, attempt)))

    def _end(self, attempt: Attempt, result: int) -> None:
        with self._lock:
            self.under_way -= 1
        attempt.end(result)


def _pieces(file: SpoolFile, buffer: memoryview, count: int = 1) -> list[Piece]:
    each = len(buffer) // count
    return [Piece(file, i * each, buffer[i * each : (i + 1) * each]) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_is_done_when_all_its_pieces_are(kind: EngineKind, file: SpoolFile) -> None:
    source, back = random_buffer(16 * MIB, 1), aligned_buffer(16 * MIB)
    with closing(RequestQueue(engine_of(kind, [file]))) as queue:
        queue.submit(Operation.WRITE, _pieces(file, source, 32)).wait()
        request = queue.submit(Operation.READ, _pieces(file, back, 32))
        request.wait()
        assert back == source
        assert (request.operation, request.size_bytes) == (Operation.READ, 16 * MIB)


@pytest.mark.parametrize("kind", KINDS)
def test_times_are_in_order(kind: EngineKind, file: SpoolFile) -> None:
    with closing(RequestQueue(engine_of(kind, [file]))) as queue:
        before_s = time.perf_counter()
        request = queue.submit(Operation.WRITE, _pieces(file, random_buffer(MIB)))
        request.wait()
        after_s = time.perf_counter()
    assert request.started_s is not None
    assert request.finished_s is not None
    times = [before_s, request.submitted_s, request.started_s, request.finished_s, after_s]
    assert times == sorted(times)


def test_asking_does_not_block_and_any_thread_may_wait(file: SpoolFile) -> None:
    queue = RequestQueue(FaultyEngine(ThreadEngine(), [Stall(0.5)]))
    with closing(queue):
        request = queue.submit(Operation.WRITE, _pieces(file, random_buffer(MIB)))
        start_s = time.perf_counter()
        assert not request.is_done()
        assert request.finished_s is None
        assert time.perf_counter() - start_s < 0.25
        threads = [threading.Thread(target=request.wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert not any(thread.is_alive() for thread in threads)
        assert request.is_done()


def test_a_full_queue_makes_the_next_submission_wait_and_counts_it(file: SpoolFile) -> None:
    queue = RequestQueue(FaultyEngine(ThreadEngine(), [Stall(0.5)] * 2), max_requests=2)
    with closing(queue):
        buffer = random_buffer(3 * MIB)
        first, second, third = _pieces(file, buffer, 3)
        requests = [queue.submit(Operation.WRITE, [piece]) for piece in (first, second)]
        assert queue.waited_s < 0.25
        requests.append(queue.submit(Operation.WRITE, [third]))
        assert queue.waited_s > 0.3
        assert any(request.is_done() for request in requests[:2])
        for request in requests:
            request.wait()


def test_the_engine_never_has_more_than_its_depth(file: SpoolFile) -> None:
    engine = _Counting(threads=3)
    with closing(RequestQueue(engine)) as queue:
        queue.submit(Operation.WRITE, _pieces(file, random_buffer(16 * MIB), 64)).wait()
    assert (engine.under_way, engine.most) == (0, 3)


def test_closing_drops_what_was_not_begun_and_tells_who_waits(file: SpoolFile) -> None:
    queue = RequestQueue(FaultyEngine(ThreadEngine(threads=1), [Stall(0.3)]))
    begun, dropped = (
        queue.submit(Operation.WRITE, _pieces(file, random_buffer(MIB, seed))) for seed in range(2)
    )
    queue.close()
    begun.wait()
    with pytest.raises(SpillError, match="closed before"):
        dropped.wait()
    with pytest.raises(SpillError, match="closed before"):
        queue.submit(Operation.WRITE, _pieces(file, random_buffer(MIB)))
    queue.close()


def test_buffers_are_held_by_what_is_in_flight(file: SpoolFile) -> None:
    with closing(RequestQueue(FaultyEngine(ThreadEngine(), [Stall(0.3)]))) as queue:
        request = queue.submit(Operation.WRITE, _pieces(file, random_buffer(MIB, 9)))
        # Nobody here holds the buffer any more; memory that is asked for now is other memory.
        others = [random_buffer(MIB, 10) for _ in range(20)]
        request.wait()
        back = aligned_buffer(MIB)
        queue.submit(Operation.READ, _pieces(file, back)).wait()
        assert back == random_buffer(MIB, 9)
        assert len(others) == 20


def test_a_stall_is_told_once_and_waited_out(file: SpoolFile) -> None:
    queue = RequestQueue(FaultyEngine(ThreadEngine(), [Stall(1.2)]), stall_s=0.3)
    queue.pulse.places = "/the/place"
    with closing(queue):
        request = queue.submit(Operation.WRITE, _pieces(file, random_buffer(MIB)))
        with pytest.warns(SpillWarning, match="no answer from /the/place") as told:
            request.wait()
        assert len(told) == 1


def test_a_long_transfer_is_no_stall(file: SpoolFile) -> None:
    script = [Stall(0.15)] * 8
    with closing(RequestQueue(FaultyEngine(ThreadEngine(threads=1), script), stall_s=0.6)) as queue:
        # 1.2 s in all, but the disk answers every 0.15 s; a warning would be an error.
        queue.submit(Operation.WRITE, _pieces(file, random_buffer(8 * MIB), 8)).wait()
