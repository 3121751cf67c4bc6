"""Which engine runs.

Scope: io_uring or threads, by trying. Containers often forbid io_uring, some kernels switch it off,
and its package has wheels for x86-64 alone: a real write and read through it tell.
"""

from __future__ import annotations

import errno
import os
import queue
import warnings
from collections.abc import Sequence

from ssd.buffers import aligned_buffer
from ssd.contracts import (
    Attempt,
    Engine,
    EngineKind,
    Operation,
    Piece,
    SpillError,
    SpillWarning,
    SpoolFile,
)
from ssd.threads import ThreadEngine

_PROBE_BYTES = 4096
_PROBE_S = 30.0
_PATTERN = b"memo" * (_PROBE_BYTES // 4)


def choose_engine(
    files: Sequence[SpoolFile], kind: EngineKind = EngineKind.AUTO, *, depth: int | None = None
) -> Engine:
    """An engine that works on `files`, with so many attempts under way; None: its own number. The
    files' first bytes may be overwritten.

    Raises:
        SpillError: when io_uring was asked for by name, and is refused.
    """
    if kind is EngineKind.THREADS:
        return _threads(depth)
    try:
        return proved_uring(files, depth=depth)
    except (ImportError, OSError) as error:
        if kind is EngineKind.URING:
            raise SpillError(
                f"io_uring is refused here ({error}): allow it (seccomp, kernel.io_uring_disabled) "
                "or use the thread engine",
                directory=files[0].directory,
                operation="set up io_uring",
                errno=error.errno if isinstance(error, OSError) else None,
            ) from error
        warnings.warn(
            f"io_uring is refused here ({error}): threads read and write instead",
            SpillWarning,
            stacklevel=3,
        )
        return _threads(depth)


def _threads(depth: int | None) -> Engine:
    return ThreadEngine() if depth is None else ThreadEngine(threads=depth)


def proved_uring(files: Sequence[SpoolFile], *, depth: int | None = None) -> Engine:
    """An io_uring engine that has written and read.

    Raises:
        ImportError: when there is no package for this machine.
        OSError: when the kernel refuses.
    """
    # Here and not above: elsewhere than on x86-64 Linux there is no such package.
    from ssd.uring import UringEngine

    engine = UringEngine(files) if depth is None else UringEngine(files, depth=depth)
    try:
        _prove(engine, files[0])
    except OSError as error:
        if error.errno != errno.ETIME:  # closing would wait for the operation that never ends
            engine.close()
        raise
    return engine


def _prove(engine: Engine, file: SpoolFile) -> None:
    buffer = aligned_buffer(_PROBE_BYTES)
    buffer[:] = _PATTERN
    _run(engine, Operation.WRITE, Piece(file, 0, buffer))
    buffer[:] = bytes(_PROBE_BYTES)
    _run(engine, Operation.READ, Piece(file, 0, buffer))
    if buffer != _PATTERN:
        raise OSError(errno.EIO, "what was written did not come back")


def _run(engine: Engine, operation: Operation, piece: Piece) -> None:
    results: queue.SimpleQueue[int] = queue.SimpleQueue()
    engine.start(Attempt(operation, piece, results.put))
    try:
        result = results.get(timeout=_PROBE_S)
    except queue.Empty as error:
        raise OSError(errno.ETIME, f"a {operation} did not end in {_PROBE_S:.0f} s") from error
    if result != len(piece.buffer):
        number = -result if result < 0 else errno.EIO
        raise OSError(number, os.strerror(number))
