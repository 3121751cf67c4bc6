"""An engine on io_uring, through the PyPI package `liburing`.

Scope: single attempts. The binding never releases the interpreter's lock, so no call into it may
block: one thread sleeps in `os.eventfd_read`, which does release it, and looks when it is rung, by
the kernel for what has ended and by `start` for what has come. That thread alone submits: the
kernel cancels what a thread submitted when the thread ends.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import SimpleQueue

import liburing

from ssd.buffers import address_of, aligned_buffer
from ssd.contracts import Attempt, Operation, Piece, SpillWarning, SpoolFile
from ssd.fixed import FixedBuffers
from ssd.vectors import Vector

_LIMITS = frozenset({errno.ENOMEM, errno.EPERM})
_TRIAL_BYTES = 4096

_BUSY = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR})
_BUSY_TRIES = 1000
_BUSY_PAUSE_S = 0.001


@dataclass(slots=True, eq=False)
class _Flight:
    """An attempt that the kernel has, and what it reads until the attempt's end."""

    attempt: Attempt
    vector: Vector


class UringEngine:
    """See `ssd.contracts.Engine`. `files` are registered, and outlive the engine; others work too.

    Raises:
        ImportError: when this version of the binding is not known here.
        OSError: when the kernel refuses a ring.
    """

    name = "io_uring"

    def __init__(self, files: Sequence[SpoolFile] = (), *, depth: int = 8) -> None:
        self.depth = depth
        self._files = tuple(files)
        self._ring = liburing.Ring()
        self._cqe = liburing.Cqe()
        self._tokens = itertools.count(1)
        self._waiting: deque[Attempt] = deque()
        self._flying: dict[int, _Flight] = {}
        self._vectors = [Vector() for _ in range(depth)]
        self._fixed = FixedBuffers(self._ring)
        self._table_lock = threading.Lock()
        self._broken_errno = 0
        self._is_closing = False
        with ExitStack() as stack:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC)
            stack.callback(os.close, self._bell)
            liburing.io_uring_queue_init(depth, self._ring)
            stack.callback(liburing.io_uring_queue_exit, self._ring)
            liburing.io_uring_register_eventfd(self._ring, self._bell)
            self._places = self._register_files(stack)
            self._held = stack.pop_all()
        self._thread = threading.Thread(target=self._serve, name="memo-ssd-uring", daemon=True)
        self._thread.start()

    def start(self, attempt: Attempt) -> None:
        if self._is_closing:  # the bell's number may be another file's by now
            attempt.end(-errno.ECANCELED)
            return
        self._waiting.append(attempt)
        if threading.current_thread() is not self._thread:  # which looks by itself after each end
            os.eventfd_write(self._bell, 1)

    def fix(self, buffers: Sequence[memoryview]) -> bool:
        """See `Engine.fix`. What is in flight is not disturbed."""
        trial = aligned_buffer(_TRIAL_BYTES)
        with self._table_lock:
            number = self._fixed.replace([*buffers, trial])
        number = number or self._try_fixed(trial)
        if number:
            with self._table_lock:
                self._fixed.clear()
            _warn_unfixed(sum(len(buffer) for buffer in buffers), number)
        return not number

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            os.eventfd_write(self._bell, 1)
            self._thread.join()
            self._held.close()

    # ---- the thread ----

    def _serve(self) -> None:
        while not (self._is_closing and not self._flying and not self._waiting):
            with suppress(InterruptedError):  # a signal: look all the same
                os.eventfd_read(self._bell)
            while self._submit() + self._reap():
                pass

    def _submit(self) -> int:
        """Hand what has come to the kernel, as far as the depth goes."""
        if not self._waiting:
            return 0
        with self._table_lock:
            tokens: list[int] = []
            while self._waiting and len(self._flying) < self.depth and not self._broken_errno:
                tokens.append(self._prepare(self._waiting.popleft()))
            self._enter()
            refused = self._take_refused(tokens)
        for attempt in refused:
            attempt.end(-self._broken_errno)
        return len(tokens) + len(refused)

    def _prepare(self, attempt: Attempt) -> int:
        """Lay an attempt into the ring, and return its token."""
        token = next(self._tokens)
        vector = self._vectors.pop()
        vector.point(0, address_of(attempt.piece.buffer), len(attempt.piece.buffer))
        sqe = liburing.io_uring_get_sqe(self._ring)
        assert sqe is not None
        self._describe(sqe, attempt, vector.iovec)
        sqe.user_data = token
        attempt.started_s = time.perf_counter()
        self._flying[token] = _Flight(attempt, vector)
        return token

    def _describe(self, sqe: liburing.SQE, attempt: Attempt, iovec: liburing.Iovec) -> None:
        piece, is_read = attempt.piece, attempt.operation is Operation.READ
        place = self._places.get(piece.file.fd)
        fd = piece.file.fd if place is None else place
        index = self._fixed.index_of(piece.buffer)
        if index is None:
            plain = liburing.io_uring_prep_readv if is_read else liburing.io_uring_prep_writev
            plain(sqe, fd, iovec, piece.offset_bytes)
        else:
            fixed = (
                liburing.io_uring_prep_readv_fixed
                if is_read
                else liburing.io_uring_prep_writev_fixed
            )
            fixed(sqe, fd, iovec, index, piece.offset_bytes)
        # After the preparation, which clears them.
        sqe.flags = 0 if place is None else liburing.IOSQE_FIXED_FILE

    def _enter(self) -> None:
        """Make the kernel take what is prepared. What it never takes is refused, for good."""
        for _ in range(_BUSY_TRIES):
            if self._broken_errno or not liburing.io_uring_sq_ready(self._ring):
                return
            try:
                liburing.io_uring_submit(self._ring)
            except OSError as error:
                if error.errno not in _BUSY:
                    self._broken_errno = error.errno or errno.EIO
                else:
                    time.sleep(_BUSY_PAUSE_S)
        self._broken_errno = self._broken_errno or errno.EBUSY

    def _take_refused(self, tokens: Sequence[int]) -> list[Attempt]:
        """What the broken ring will never run: the last that were prepared, and all that wait."""
        if not self._broken_errno:
            return []
        left = min(int(liburing.io_uring_sq_ready(self._ring)), len(tokens))
        refused = [self._flying.pop(token).attempt for token in tokens[len(tokens) - left :]]
        while self._waiting:
            refused.append(self._waiting.popleft())
        return refused

    def _reap(self) -> int:
        """Take what has ended off the ring, and tell."""
        count = int(liburing.io_uring_cq_ready(self._ring))
        for _ in range(count):
            liburing.io_uring_peek_cqe(self._ring, self._cqe)
            entry = self._cqe[0]
            flight, result = self._flying.pop(entry.user_data), _result_of(entry)
            liburing.io_uring_cqe_seen(self._ring, entry)
            self._vectors.append(flight.vector)
            flight.attempt.end(result)
        return count

    # ---- the kernel's tables ----

    def _register_files(self, stack: ExitStack) -> dict[int, int]:
        if not self._files:
            return {}
        fds = [file.fd for file in self._files]
        try:
            liburing.io_uring_register_files(self._ring, liburing.FileIndex(fds))
        except OSError:  # a limit of descriptors: plain ones do as well
            return {}
        # At once: when the ring ends, the kernel lets files go in its own time.
        stack.callback(liburing.io_uring_unregister_files, self._ring)
        return {fd: place for place, fd in enumerate(fds)}

    def _try_fixed(self, trial: memoryview) -> int:
        """Read into a fixed buffer. Kernels before 6.15 know them, but not as vectors."""
        if not self._files:
            return 0
        results: SimpleQueue[int] = SimpleQueue()
        self.start(Attempt(Operation.READ, Piece(self._files[0], 0, trial), results.put))
        return -min(results.get(), 0)


def _result_of(entry: liburing.CQE) -> int:
    try:
        return int(entry.res)
    except OSError as error:
        return -(error.errno or errno.EIO)


def _warn_unfixed(size_bytes: int, number: int) -> None:
    cure = "raise the limit of locked memory (ulimit -l)" if number in _LIMITS else "none is needed"
    warnings.warn(
        f"{size_bytes:,} bytes of buffers could not be fixed for io_uring "
        f"({os.strerror(number)}): each operation pins its own, a little slower; {cure}",
        SpillWarning,
        stacklevel=4,
    )
