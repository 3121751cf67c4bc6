"""Disks: how fast a spool in a directory writes and reads, by writing and reading one.

Scope: one short measurement through `ssd`, with its own choice of engine. Everything is written
once before it is timed: blocks that were never written are half as fast.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy

from memo.doctor.contracts import DiskProbe
from ssd import Extent, Request, SpillError, Spool, aligned_buffer, open_spool
from ssd.choice import proved_uring
from ssd.files import close_file, open_file

DEFAULT_BYTES = 256 << 20
_EXTENT_BYTES = 32 << 20
_ROUNDS = 3
_MARGIN_BYTES = 64 << 20
"""Left free: the probe is not to fill a disk up."""

_TRIAL_BYTES = 1 << 20
_FIXED_BYTES = 64 << 20
"""Tried to be registered: more than the 8 MiB that most systems let a user lock, and little of
what a pool of host memory has.
"""


def probe_disk(directory: Path, size_bytes: int = DEFAULT_BYTES) -> DiskProbe:
    """Measure with a nameless file of about `size_bytes`, which is gone afterwards. A directory
    that can't be used is a `problem`, not an error.

    Raises:
        ValueError: for a size that is not above 0.
    """
    if size_bytes <= 0:
        raise ValueError(f"size_bytes is {size_bytes}: takes 1 or more")
    found = ask_disk(directory)
    if found.problem is not None:
        return found
    extents = -(-size_bytes // _EXTENT_BYTES)
    if found.free_bytes < extents * _EXTENT_BYTES + _MARGIN_BYTES:
        return replace(found, problem="too little is free to measure: free space, or name another")
    try:
        return _measure(found, directory, extents)
    except SpillError as error:
        return replace(found, problem=str(error))


def ask_disk(directory: Path) -> DiskProbe:
    """What is known without writing: whether it is there, and its space. A directory that can't be
    used is a `problem`.
    """
    nothing = DiskProbe(directory=str(directory), size_bytes=0, free_bytes=0)
    try:
        usage, device = shutil.disk_usage(directory), directory.stat().st_dev
    except OSError as error:
        return replace(
            nothing, problem=f"{error.strerror or error}: name a directory that is there"
        )
    if not directory.is_dir():
        return replace(nothing, problem="no directory: name one")
    if not usage.total:  # /proc and its like
        return replace(nothing, problem="it keeps no files: name a directory on a disk")
    return DiskProbe(
        directory=str(directory), device=device, size_bytes=usage.total, free_bytes=usage.free
    )


def try_uring(found: DiskProbe, directory: Path) -> DiskProbe:
    """Whether io_uring works on files there, and takes buffers to be registered.

    Raises:
        SpillError: when no file can be had there.
    """
    file = open_file(directory, _TRIAL_BYTES)
    try:
        engine = proved_uring([file])
        is_fixed = engine.fix([aligned_buffer(_FIXED_BYTES)])
        engine.close()
    except ImportError:
        return replace(found, io_uring="the package liburing is not installed")
    except OSError as error:
        return replace(found, io_uring=error.strerror or str(error))
    finally:
        close_file(file)
    return replace(found, io_uring="", fixed_bytes=_FIXED_BYTES, is_fixed=is_fixed)


def _measure(found: DiskProbe, directory: Path, extents: int) -> DiskProbe:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = try_uring(found, directory)
        with open_spool([directory], extents * _EXTENT_BYTES) as spool:
            write_rate, read_rate = _rates(spool, extents)
            engine, is_direct = spool.queue.engine.name, spool.files[0].is_direct
    return replace(
        found,
        engine=engine,
        is_direct=is_direct,
        write_bytes_per_s=write_rate,
        read_bytes_per_s=read_rate,
        notes=tuple(dict.fromkeys(str(warning.message) for warning in caught)),
    )


def _rates(spool: Spool, count: int) -> tuple[float, float]:
    """Bytes a second of writing and of reading, the medians of some rounds each."""
    extents = [spool.allocate(_EXTENT_BYTES) for _ in range(count)]
    source, target = aligned_buffer(_EXTENT_BYTES), aligned_buffer(_EXTENT_BYTES)
    # Some drives compress, so zeros would flatter them.
    random = numpy.random.default_rng(0).bytes(_EXTENT_BYTES)
    source[:] = random
    _run(extents, lambda extent: spool.write(extent, source))
    writes = [_run(extents, lambda extent: spool.write(extent, source)) for _ in range(_ROUNDS)]
    reads = [_run(extents, lambda extent: spool.read(extent, target)) for _ in range(_ROUNDS)]
    if target != random:
        raise _damaged(spool)
    size_bytes = count * _EXTENT_BYTES
    return size_bytes / sorted(writes)[_ROUNDS // 2], size_bytes / sorted(reads)[_ROUNDS // 2]


def _run(extents: Sequence[Extent], start: Callable[[Extent], Request]) -> float:
    """Seconds from the first request to the end of the last, all in flight together."""
    started_s = time.perf_counter()
    requests = [start(extent) for extent in extents]
    for request in requests:
        request.wait()
    return time.perf_counter() - started_s


def _damaged(spool: Spool) -> SpillError:
    directory = spool.files[0].directory
    message = f"what was written in {directory} did not come back: use another disk"
    return SpillError(message, directory=directory, operation="read")
