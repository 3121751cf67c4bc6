"""An engine of a few threads, each in one `preadv` or `pwritev` at a time.

Scope: single attempts. It runs wherever Python runs on Linux; the system calls release the
interpreter's lock.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ssd.contracts import Attempt, Operation


class ThreadEngine:
    """See `ssd.contracts.Engine`. Threads start with their first attempt."""

    name = "threads"

    def __init__(self, *, threads: int = 4) -> None:
        self.depth = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="memo-ssd")

    def start(self, attempt: Attempt) -> None:
        try:
            self._executor.submit(_run, attempt)
        except RuntimeError:  # closed, or the interpreter is on its way out
            attempt.end(-errno.ECANCELED)

    def fix(self, buffers: Sequence[memoryview]) -> bool:
        return False

    def close(self) -> None:
        self._executor.shutdown()


def _run(attempt: Attempt) -> None:
    attempt.started_s = time.perf_counter()
    piece = attempt.piece
    call = os.preadv if attempt.operation is Operation.READ else os.pwritev
    try:
        result = call(piece.file.fd, [piece.buffer], piece.offset_bytes)
    except OSError as error:
        result = -(error.errno or errno.EIO)
    attempt.end(result)
