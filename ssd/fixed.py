"""A ring's table of fixed buffers: memory that the kernel has pinned once, and not for each
operation.

Scope: the table. When it may change, and what is done when the kernel refuses, is the engine's.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import liburing

from ssd.buffers import address_of
from ssd.vectors import Vector

_MAX_BYTES = 1 << 30
"""The kernel's limit for one entry."""


class FixedBuffers:
    """Entries by address."""

    def __init__(self, ring: liburing.Ring) -> None:
        self._ring = ring
        self._spans: list[tuple[int, int]] = []
        # The kernel's pins stay on the memory, whatever lies at its address later.
        self._held: list[memoryview] = []

    def replace(self, buffers: Sequence[memoryview]) -> int:
        """Make these the table, and return 0; or leave it empty, and return the errno."""
        self.clear()
        parts = [
            buffer[start : start + _MAX_BYTES]
            for buffer in buffers
            for start in range(0, len(buffer), _MAX_BYTES)
        ]
        spans = [(address_of(part), address_of(part) + len(part)) for part in parts]
        vector = Vector(len(parts))
        for index, (start, stop) in enumerate(spans):
            vector.point(index, start, stop - start)
        try:
            liburing.io_uring_register_buffers(self._ring, vector.iovec)
        except OSError as error:
            return error.errno or errno.EIO
        self._spans, self._held = spans, parts
        return 0

    def clear(self) -> None:
        if self._spans:
            self._spans, self._held = [], []
            liburing.io_uring_unregister_buffers(self._ring)

    def index_of(self, buffer: memoryview) -> int | None:
        """The entry in which all of the buffer lies."""
        if not self._spans:
            return None
        start = address_of(buffer)
        stop = start + len(buffer)
        for index, (low, high) in enumerate(self._spans):
            if low <= start and stop <= high:
                return index
        return None
