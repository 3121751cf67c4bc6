"""The spool: extents on one or several disks, written and read behind the caller's back.

Scope: what the disk's only caller uses. Files, engines, retries and checksums are elsewhere; this
says which bytes go where, and that nobody reads what is not written: a read waits for the write of
its extent, and an extent that is given back is lent again only when its transfers are over.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ssd.buffers import address_of
from ssd.checksums import Checksums
from ssd.contracts import (
    Extent,
    Operation,
    Piece,
    SpillError,
    SpillWarning,
    SpoolFile,
)
from ssd.extents import Extents
from ssd.faults import spill_error
from ssd.files import close_file, grow_file, shrink_file
from ssd.request_queue import RequestQueue
from ssd.requests import Request
from ssd.stripes import Stripe, cut, shares

BLOCK_BYTES = 4 << 20
"""Large enough for a disk's full bandwidth, small enough to keep several in flight."""


@dataclass(slots=True)
class _Use:
    """The transfers of one extent that is lent."""

    write: Request | None = None
    reads: list[Request] = field(default_factory=list)

    @property
    def open(self) -> list[Request]:
        requests = [*self.reads] if self.write is None else [self.write, *self.reads]
        return [request for request in requests if not request.is_done()]


class Spool:
    """Extents over `files`, which it owns with the queue. Safe for threads. Most want `open_spool`.

    Raises:
        ValueError: when blocks aren't aligned as the files want it.
    """

    def __init__(
        self,
        files: Sequence[SpoolFile],
        queue: RequestQueue,
        *,
        checksums: Checksums | None = None,
        block_bytes: int = BLOCK_BYTES,
        grow_file: Callable[[SpoolFile, int], SpoolFile] = grow_file,
        shrink_file: Callable[[SpoolFile], None] = shrink_file,
    ) -> None:
        self.files = tuple(files)
        self.queue = queue
        self.size_bytes = sum(file.size_bytes for file in files)
        self._grow_file, self._shrink_file = grow_file, shrink_file
        alignments = [file.alignment for file in files]
        self.alignment_bytes = max(max(a.memory_bytes, a.offset_bytes) for a in alignments)
        if block_bytes <= 0 or block_bytes % self.alignment_bytes:
            raise ValueError(
                f"block_bytes is {block_bytes}: it takes a multiple of {self.alignment_bytes}"
            )
        self._block_bytes = block_bytes
        self._checksums = checksums
        self._extents = Extents(self.size_bytes)
        self._uses: dict[Extent, _Use] = {}
        self._leaving: deque[tuple[Extent, _Use]] = deque()
        self._lock = threading.Lock()
        self._is_closed = False
        self._process = os.getpid()
        queue.pulse.places = ", ".join(sorted({str(file.directory) for file in files}))

    @property
    def flight_bytes(self) -> int:
        """What keeps the engine busy."""
        return self.queue.engine.depth * self._block_bytes

    # ---- space ----

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody has, but for those in which transfers are under way."""
        with self._lock:
            self._sweep()
            return self._extents.free_bytes

    @property
    def tail_bytes(self) -> int:
        """Of the free bytes, those at the end."""
        with self._lock:
            return self._extents.tail_bytes

    def reserve(self, size_bytes: int) -> None:
        """Have `size_bytes` in all, lent or not; nothing is given back when they are fewer.

        Raises:
            SpillError: when there is no space for them; the spool is as it was.
        """
        self._check_process()
        with self._lock:
            sizes = shares(size_bytes, block_bytes=self._block_bytes, files=len(self.files))
            files = list(self.files)
            try:
                for index, share_bytes in enumerate(sizes):
                    if share_bytes > files[index].size_bytes:
                        files[index] = self._grow_file(files[index], share_bytes)
            except SpillError:
                for file, grown in zip(self.files, files, strict=True):
                    if grown is not file:
                        self._shrink_file(file)
                raise
            if size_bytes > self.size_bytes:
                self.files, self.size_bytes = tuple(files), size_bytes
                self._extents.grow(size_bytes)

    def allocate(self, size_bytes: int) -> Extent:
        """Lend an extent of `size_bytes`, rounded up to the alignment. Waits when all that is
        missing is the end of a transfer in what was given back.

        Raises:
            SpillError: when there is no room.
        """
        if size_bytes <= 0:
            raise ValueError(f"size_bytes is {size_bytes}: it takes 1 or more")
        self._check_process()
        size_bytes = -(-size_bytes // self.alignment_bytes) * self.alignment_bytes
        with self._lock:
            self._sweep()
            extent = self._extents.take(size_bytes)
            while extent is None and self._leaving:
                self._let_leave(*self._leaving.popleft())
                extent = self._extents.take(size_bytes)
            if extent is None:
                raise self._no_room(size_bytes)
            self._uses[extent] = _Use()
        return extent

    def free(self, extent: Extent) -> None:
        """Give an extent back; transfers in it may still be under way. Finalizers may call it, in
        any thread and at any moment: it takes no lock, and the work is `allocate`'s.
        """
        use = self._uses.pop(extent, None)
        if use is None:
            raise _not_lent(extent)
        self._leaving.append((extent, use))

    # ---- transfers ----

    def write(self, extent: Extent, buffer: memoryview) -> Request:
        """Begin to write `buffer`, of the extent's size, aligned, and unchanged until then.

        Raises:
            SpillError: when the spool is closed.
            ValueError: when the buffer is of another size, or not aligned.
        """
        use = self._use_of(extent)
        pieces = self._pieces(extent, buffer)
        for request in use.open:
            request.settle()
        use.write = self.queue.submit(Operation.WRITE, pieces)
        return use.write

    def read(self, extent: Extent, buffer: memoryview) -> Request:
        """Begin to read the extent into `buffer`; waits for its write.

        Raises:
            SpillError: when the extent's write failed, or the spool is closed.
            ValueError: when it was never written, or the buffer is read-only, of another size, or
                not aligned.
        """
        use = self._use_of(extent)
        if use.write is None:
            raise ValueError(f"extent [{extent.start}, {extent.stop}) was never written")
        if buffer.readonly:
            raise ValueError("buffer is read-only: it takes one to read into")
        pieces = self._pieces(extent, buffer)
        use.write.wait()
        request = self.queue.submit(Operation.READ, pieces)
        use.reads = [*(read for read in use.reads if not read.is_done()), request]
        return request

    def fix(self, buffers: Sequence[memoryview]) -> bool:
        """Tell the engine the memory from which most buffers come: see `Engine.fix`."""
        return self.queue.engine.fix(buffers)

    def close(self) -> None:
        """End what is under way, and let the files go with all that is in them."""
        if self._is_anothers:  # ring and threads are
            return
        self.queue.close()
        if not self._is_closed:
            self._is_closed = True
            for file in self.files:
                close_file(file)
            for use in [*self._uses.values(), *(use for _, use in self._leaving)]:
                _tell_of_failure(use)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---- inside ----

    @property
    def _is_anothers(self) -> bool:
        """Whether this process is a fork of the one that opened it."""
        return os.getpid() != self._process

    def _check_process(self) -> None:
        if self._is_anothers:
            directory = self.files[0].directory
            raise SpillError(
                f"the spool in {directory} belongs to process {self._process}, of which this one "
                "is a fork, and both would write over each other; wrap the model in the process "
                "that trains it",
                directory=directory,
                operation="use the spool after a fork",
            )

    def _use_of(self, extent: Extent) -> _Use:
        self._check_process()
        use = self._uses.get(extent)
        if use is None:
            raise _not_lent(extent)
        return use

    def _pieces(self, extent: Extent, buffer: memoryview) -> list[Piece]:
        buffer = buffer.cast("B")
        if len(buffer) != extent.size_bytes:
            raise ValueError(f"buffer has {len(buffer)} bytes: it takes {extent.size_bytes}")
        memory_bytes = max(file.alignment.memory_bytes for file in self.files)
        if address_of(buffer) % memory_bytes:
            raise ValueError(f"buffer is not aligned: it takes an address of {memory_bytes} bytes")
        return [
            Piece(
                self.files[s.file_index], s.offset_bytes, buffer[s.position_bytes :][: s.size_bytes]
            )
            for s in self._cut(extent)
        ]

    def _cut(self, extent: Extent) -> Iterator[Stripe]:
        files = len(self.files)
        return cut(extent.start, extent.size_bytes, block_bytes=self._block_bytes, files=files)

    def _sweep(self) -> None:
        """Let go what nobody reads or writes any more."""
        for _ in range(len(self._leaving)):
            extent, use = self._leaving.popleft()
            if use.open:
                self._leaving.append((extent, use))
            else:
                self._let_leave(extent, use)

    def _let_leave(self, extent: Extent, use: _Use) -> None:
        for request in use.open:
            request.settle()
        self._extents.give_back(extent)
        if self._checksums is not None:
            for stripe in self._cut(extent):
                self._checksums.forget(self.files[stripe.file_index].fd, stripe.offset_bytes)
        _tell_of_failure(use)

    def _no_room(self, size_bytes: int) -> SpillError:
        free_bytes, largest_bytes = self._extents.free_bytes, self._extents.largest_bytes
        detail = f"{free_bytes:,} of {self.size_bytes:,} are free, {largest_bytes:,} in one stretch"
        operation = f"allocate {size_bytes:,} bytes"
        return spill_error(operation, self.files[0].directory, errno.ENOSPC, detail=detail)


def _not_lent(extent: Extent) -> ValueError:
    return ValueError(f"extent [{extent.start}, {extent.stop}) is not lent")


def _tell_of_failure(use: _Use) -> None:
    """Of a write that nobody waited for: its bytes are wanted no more, and yet the disk is ill."""
    write = use.write
    if write is None or write.error is None or write.error.errno == errno.ECANCELED:
        return  # at the end of all, nothing is ill
    if not write.is_told:
        write.is_told = True
        warnings.warn(f"{write.error}", SpillWarning, stacklevel=5)
