"""A real disk for the transfer engine: a thread for writes and one for reads, before a spool.

Scope: waiting for what comes before a transfer, and saying the disk's errors in the runtime's
words. The threads mostly sleep; bytes are moved by the spool's engine. A write stays in its queue,
where it can still be dropped, until the disk has work for no more than a moment.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from torch import Tensor

import ssd
from offload.contracts import SpillError, TransferError
from offload.disk import DiskCopy, DiskTransfer
from offload.streams import Event


@dataclass(frozen=True, slots=True)
class _Begun:
    """A request, and how long its lane waited before it could make it."""

    request: ssd.Request
    waited_s: float


class SpoolTransfer:
    """See `offload.disk.DiskTransfer`: a request that a thread makes when its time has come."""

    def __init__(self, future: Future[_Begun]) -> None:
        self._future = future

    def is_done(self) -> bool:
        if not self._future.done():
            return False
        request = self._request
        return request is None or request.is_done()

    def settle(self) -> None:
        wait([self._future])
        if self._request is not None:
            self._request.settle()
            self._request.is_told = True  # who waits asks for the error, too

    def cancel(self) -> bool:
        return self._future.cancel()

    @property
    def error(self) -> TransferError | None:
        if self._future.cancelled():
            return None
        error = self._future.exception()
        if error is None and self._request is not None:
            error = self._request.error
        return None if error is None else _translated(error)

    @property
    def span_s(self) -> tuple[float, float] | None:
        request = self._request
        if request is None or request.started_s is None or request.finished_s is None:
            return None
        return request.started_s, request.finished_s

    @property
    def waited_s(self) -> float:
        return 0.0 if self._begun is None else self._begun.waited_s

    @property
    def _request(self) -> ssd.Request | None:
        return None if self._begun is None else self._begun.request

    @property
    def _begun(self) -> _Begun | None:
        """Once the future is done; None when nothing was asked of the spool."""
        if self._future.cancelled() or self._future.exception() is not None:
            return None
        return self._future.result()


class SpoolDisk:
    """See `offload.disk.Disk`. Owns the spool, and closes it when nobody holds the disk any more.
    `can_grow`: the spool takes more space when it is full.
    """

    def __init__(self, spool: ssd.Spool, *, can_grow: bool) -> None:
        self._spool, self._can_grow = spool, can_grow
        self._is_fixing = True
        self._under_way = _Writes(2 * spool.flight_bytes)
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="memo-ssd-write")
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="memo-ssd-read")
        self.close = weakref.finalize(self, _close, (self._writes, self._reads), spool)

    @property
    def alignment_bytes(self) -> int:
        return self._spool.alignment_bytes

    @property
    def size_bytes(self) -> int:
        return self._spool.size_bytes

    @property
    def written_bytes(self) -> int:
        return self._under_way.begun_bytes

    def reserve(self, size_bytes: int) -> None:
        if self._can_grow and size_bytes > self._spool.size_bytes:
            with _in_our_words():
                self._spool.reserve(size_bytes)

    def write(self, memory: Tensor, after: Sequence[Event]) -> DiskCopy:
        extent = self._allocate(memory.numel())
        future = self._writes.submit(
            _begin_write, self._spool, self._under_way, extent, memory, tuple(after)
        )
        return DiskCopy(extent, SpoolTransfer(future))

    def read(self, copy: DiskCopy, memory: Tensor, after: Sequence[Event]) -> DiskTransfer:
        future = self._reads.submit(_begin_read, self._spool, copy.place, memory, tuple(after))
        return SpoolTransfer(future)

    def free(self, copy: DiskCopy) -> None:
        self._spool.free(copy.place)

    def fix(self, memories: Sequence[Tensor]) -> None:
        if self._is_fixing:  # where it was refused once, it is refused again
            self._is_fixing = self._spool.fix([_view(memory) for memory in memories])

    def _allocate(self, size_bytes: int) -> ssd.Extent:
        try:
            return self._spool.allocate(size_bytes)
        except ssd.SpillError as error:
            if not self._can_grow or error.errno != errno.ENOSPC:
                raise _translated(error) from error
        held_bytes = self._spool.size_bytes
        try:  # by a quarter, so that lengths that grow do not ask each time
            self.reserve(held_bytes + max(size_bytes, held_bytes // 4))
        except SpillError:
            self.reserve(held_bytes + size_bytes - self._spool.tail_bytes)
        with _in_our_words():
            return self._spool.allocate(size_bytes)


@dataclass(slots=True)
class _Writes:
    """Those that the spool has in hand, and how many bytes they may be; one thread's alone. At
    least two keep the disk busy while one ends.
    """

    limit_bytes: int
    requests: deque[ssd.Request] = field(default_factory=deque)
    begun_bytes: int = 0

    def make_room(self) -> None:
        while len(self.requests) > 1 and self._bytes > self.limit_bytes:
            self.requests.popleft().settle()

    @property
    def _bytes(self) -> int:
        return sum(request.size_bytes for request in self.requests)

    def add(self, request: ssd.Request) -> None:
        self.requests.append(request)
        self.begun_bytes += request.size_bytes


def _begin_write(
    spool: ssd.Spool,
    under_way: _Writes,
    extent: ssd.Extent,
    memory: Tensor,
    after: Sequence[Event],
) -> _Begun:
    start_s = perf_counter()
    for event in after:
        event.synchronize()
    under_way.make_room()
    waited_s = perf_counter() - start_s
    request = spool.write(extent, _view(memory))
    under_way.add(request)
    return _Begun(request, waited_s)


def _begin_read(
    spool: ssd.Spool, extent: ssd.Extent, memory: Tensor, after: Sequence[Event]
) -> _Begun:
    start_s = perf_counter()
    for event in after:
        if not event.is_done():  # one that failed is over as well, and was another parcel's
            with suppress(Exception):
                event.synchronize()
    waited_s = perf_counter() - start_s
    return _Begun(spool.read(extent, _view(memory)), waited_s)


def _close(executors: Sequence[ThreadPoolExecutor], spool: ssd.Spool) -> None:
    if threading.current_thread().name.startswith("memo-ssd"):
        # The collector may run anywhere, and a thread can't wait for its own end.
        threading.Thread(target=_close, args=(executors, spool), name="memo-close").start()
        return
    for executor in executors:
        executor.shutdown(cancel_futures=True)
    spool.close()


def _view(memory: Tensor) -> memoryview:
    return memory.numpy().data


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except ssd.SpillError as error:
        raise _translated(error) from error


def _translated(error: BaseException) -> TransferError:
    if isinstance(error, ssd.SpillError):
        told: TransferError = SpillError(
            str(error), directory=error.directory, operation=error.operation, errno=error.errno
        )
    else:
        told = TransferError(f"a copy between tiers failed: {error}")
    told.__cause__ = error
    return told


def open_disk(
    directories: Sequence[Path],
    *,
    size_bytes: int | None = None,
    verify: str = "none",
    raw: bool = False,
) -> SpoolDisk:
    """A disk over directories (or, `raw`, block devices), of `size_bytes` reserved at once, or
    (None) as large as it has to be.

    Raises:
        SpillError: when a directory, its space or a device can't be had.
    """
    with _in_our_words():
        spool = ssd.open_spool(directories, size_bytes, verify=verify, raw=raw)
    return SpoolDisk(spool, can_grow=size_bytes is None)
