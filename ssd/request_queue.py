"""The queue before an engine: requests go in whole, and are kept going until they are over.

Scope: what engines leave out. A request is done when all its pieces are. A short transfer goes on
where it ended; a transient error is tried again, a bounded number of times and later each time; a
lasting one ends the request with a `SpillError`, and leaves the queue as it was. At most
`max_requests` are open: the next submission waits, and its seconds are counted.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ssd.contracts import Attempt, Engine, Operation, Piece, SpillError
from ssd.faults import TRANSIENT, spill_error
from ssd.requests import Pulse, Request

Check = Callable[[Operation, Piece], SpillError | None]
"""What is done with a piece that was moved, in a thread of its own; it never raises."""


@dataclass(slots=True, eq=False)
class _Open:
    """A request that is not done, and how many of its pieces are not."""

    request: Request
    pieces_left: int
    error: SpillError | None = None


@dataclass(slots=True, eq=False)
class _Task:
    """A piece on its way, and the last attempt at it."""

    owner: _Open
    piece: Piece
    moved_bytes: int = 0
    retries: int = 0
    attempt: Attempt | None = None

    @property
    def rest(self) -> Piece:
        piece, moved = self.piece, self.moved_bytes
        if not moved:
            return piece
        return Piece(piece.file, piece.offset_bytes + moved, piece.buffer[moved:])


class RequestQueue:
    """See the module's docstring. Owns the engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_requests: int = 64,
        max_retries: int = 4,
        retry_pause_s: float = 0.002,
        stall_s: float = 30.0,
        check: Check | None = None,
        check_threads: int = 2,
    ) -> None:
        self.engine = engine
        self.pulse = Pulse(stall_s)
        self.waited_s = 0.0
        self.retried = 0
        self._max_requests = max_requests
        self._max_retries = max_retries
        self._retry_pause_s = retry_pause_s
        self._check = check
        self._checkers = ThreadPoolExecutor(check_threads, thread_name_prefix="memo-ssd-check")
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._open: set[_Open] = set()
        self._tasks: deque[_Task] = deque()
        self._under_way = 0
        self._is_closed = False

    # ---- what the spool calls ----

    def submit(self, operation: Operation, pieces: Sequence[Piece]) -> Request:
        """Begin; the buffers are held until the request is done.

        Raises:
            SpillError: when the queue is closed.
        """
        size_bytes = sum([len(piece.buffer) for piece in pieces])
        with self._lock:
            self._wait_for_room()
            if self._is_closed:
                raise _closed(operation, pieces[0])
            owner = _Open(Request(operation, size_bytes, self.pulse), len(pieces))
            self._open.add(owner)
            self._tasks.extend([_Task(owner, piece) for piece in pieces])
            ready = self._take_ready()
        self._start_all(ready)
        return owner.request

    def close(self) -> None:
        """Drop what was not begun, wait for what was, and close the engine. Who waits for a dropped
        request gets a `SpillError`.
        """
        with self._lock:
            self._is_closed = True
            dropped = list(self._tasks)
            self._tasks.clear()
            for task in dropped:
                self._settle(task, _closed(task.owner.request.operation, task.piece))
            self._changed.wait_for(lambda: not self._open)
        self._checkers.shutdown()
        self.engine.close()

    # ---- pieces ----

    def _wait_for_room(self) -> None:
        if len(self._open) >= self._max_requests:
            start_s = time.perf_counter()
            self._changed.wait_for(lambda: len(self._open) < self._max_requests or self._is_closed)
            self.waited_s += time.perf_counter() - start_s

    def _take_ready(self) -> list[_Task]:
        """What keeps the engine as busy as it goes; with the lock held, and to be started after."""
        ready: list[_Task] = []
        while self._tasks and self._under_way < self.engine.depth:
            ready.append(self._tasks.popleft())
            self._under_way += 1
        return ready

    def _start_all(self, ready: Sequence[_Task]) -> None:
        for task in ready:
            self._start(task)

    def _start(self, task: _Task) -> None:
        task.attempt = Attempt(task.owner.request.operation, task.rest, partial(self._end, task))
        self.engine.start(task.attempt)

    def _end(self, task: _Task, result: int) -> None:
        """In a thread of the engine's."""
        self.pulse.beat_s = time.perf_counter()
        request, piece, attempt = task.owner.request, task.piece, task.attempt
        if request.started_s is None and attempt is not None:
            request.started_s = attempt.started_s
        # Direct I/O goes on at aligned offsets only.
        unit_bytes = piece.file.alignment.offset_bytes
        moved_bytes = max(result, 0) // unit_bytes * unit_bytes
        task.moved_bytes += moved_bytes
        if task.moved_bytes == len(piece.buffer):
            self._leave_engine(task, None)
        elif moved_bytes:
            self._start(task)
        elif task.retries < self._max_retries and (result >= 0 or -result in TRANSIENT):
            self._retry(task)
        else:
            self._leave_engine(task, _failure(task, result))

    def _retry(self, task: _Task) -> None:
        pause_s = self._retry_pause_s * 4**task.retries
        task.retries += 1
        self.retried += 1
        timer = threading.Timer(pause_s, self._start, [task])
        timer.daemon = True
        timer.start()

    def _leave_engine(self, task: _Task, error: SpillError | None) -> None:
        """One stretch under the lock for all that an end changes: it is paid for each block."""
        task.attempt = None  # which holds the task in turn: a cycle would keep the buffer alive
        check = self._check if error is None else None
        with self._lock:
            self._under_way -= 1
            if check is None:
                self._settle(task, error)
            ready = self._take_ready()
        if check is not None:
            try:
                self._checkers.submit(self._run_check, check, task)
            except RuntimeError:  # the interpreter is on its way out: nobody is kept from work
                self._run_check(check, task)
        self._start_all(ready)

    def _run_check(self, check: Check, task: _Task) -> None:
        error = check(task.owner.request.operation, task.piece)
        with self._lock:
            self._settle(task, error)

    def _settle(self, task: _Task, error: SpillError | None) -> None:
        """A piece is over; after an error the request's others are not begun. With the lock."""
        owner = task.owner
        owner.pieces_left -= 1
        if error is not None:
            owner.error = owner.error or error
            others = [other for other in self._tasks if other.owner is owner]
            owner.pieces_left -= len(others)
            for other in others:
                self._tasks.remove(other)
        if owner.pieces_left == 0:
            owner.request.finish(owner.error)
            self._open.remove(owner)
            self._changed.notify_all()


def _failure(task: _Task, result: int) -> SpillError:
    piece, request = task.piece, task.owner.request
    where = f"{len(piece.buffer):,} bytes at {piece.offset_bytes:,}"
    if result < 0:
        detail = f"after {task.retries} retries" if task.retries else ""
        number = -result
        return spill_error(
            f"{request.operation} {where}", piece.file.directory, number, detail=detail
        )
    detail = f"it ended after {task.moved_bytes:,} bytes"
    return spill_error(f"{request.operation} {where}", piece.file.directory, None, detail=detail)


def _closed(operation: Operation, piece: Piece) -> SpillError:
    return SpillError(
        f"could not {operation} in {piece.file.directory}: the spool was closed before; wait for "
        "transfers before closing it",
        directory=piece.file.directory,
        operation=operation,
        errno=errno.ECANCELED,
    )
