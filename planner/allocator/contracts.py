"""What goes into the simulated allocator and what comes out: events, usage, segments.

Scope: plain data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Malloc:
    """`size_bytes` for tensor storage `id`, on `stream`. Of 0 bytes nothing is allocated."""

    id: int
    size_bytes: int
    stream: int = 0


@dataclass(frozen=True, slots=True)
class Free:
    """The last reference to `id` is gone."""

    id: int


@dataclass(frozen=True, slots=True)
class RecordStream:
    """`id` is used on another stream: once freed, it waits until that stream's work is over."""

    id: int
    stream: int


@dataclass(frozen=True, slots=True)
class StreamDone:
    """All that was queued on `stream` so far is over. The allocator sees it at its next malloc."""

    stream: int


@dataclass(frozen=True, slots=True)
class EmptyCache:
    """`torch.cuda.empty_cache()`."""


Event = Malloc | Free | RecordStream | StreamDone | EmptyCache


@dataclass(frozen=True, slots=True)
class Gauge:
    """A figure now, and the highest that it was."""

    now: int = 0
    peak: int = 0

    def plus(self, amount: int) -> Gauge:
        now = self.now + amount
        return Gauge(now, max(now, self.peak))


@dataclass(frozen=True, slots=True)
class Usage:
    """As in `torch.cuda.memory_stats`: bytes of segments (`reserved`), of blocks handed out
    (`allocated`), of those and of freed ones that streams still use (`active`), and of what was
    asked for the latter (`requested`). `segments`: calls of cudaMalloc that were not undone; an
    expandable segment counts as one.
    """

    reserved_bytes: Gauge = Gauge()
    allocated_bytes: Gauge = Gauge()
    active_bytes: Gauge = Gauge()
    requested_bytes: Gauge = Gauge()
    segments: Gauge = Gauge()

    @property
    def cached_bytes(self) -> int:
        """Reserved now, and not allocated."""
        return self.reserved_bytes.now - self.allocated_bytes.now


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """An allocation that failed after all that could be released was.

    `rounded_bytes` is the block it takes, `segment_bytes` what was last asked of the device, which
    had `device_free_bytes` (of the fraction that the process may use). `cached_bytes` are in
    segments, but not allocated; `largest_free_bytes` of them lie in one block of the request's
    stream and pool.
    """

    malloc: Malloc
    rounded_bytes: int
    segment_bytes: int
    device_free_bytes: int
    reserved_bytes: int
    allocated_bytes: int
    largest_free_bytes: int

    @property
    def cached_bytes(self) -> int:
        return self.reserved_bytes - self.allocated_bytes

    @property
    def is_fragmentation(self) -> bool:
        """Whether the bytes were there, but not in one stretch."""
        return self.device_free_bytes + self.cached_bytes >= self.rounded_bytes

    def __str__(self) -> str:
        return (
            f"out of memory: tried to allocate {self.malloc.size_bytes:,} bytes (a segment of "
            f"{self.segment_bytes:,}) with {self.device_free_bytes:,} free on the device; "
            f"{self.allocated_bytes:,} are allocated, and {self.cached_bytes:,} reserved but "
            f"unallocated, {self.largest_free_bytes:,} of them in one block"
        )


@dataclass(frozen=True, slots=True)
class BlockView:
    """A stretch of a segment. `id` is None for a free one; `requested_bytes` 0. `is_active` and not
    `is_allocated`: freed, but a stream still uses it.
    """

    address: int
    size_bytes: int
    requested_bytes: int
    id: int | None
    is_allocated: bool
    is_active: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of device memory, cut without gaps into `blocks` in order of address. Of an
    expandable segment, each stretch that is mapped.
    """

    address: int
    size_bytes: int
    stream: int
    is_small: bool
    is_expandable: bool
    blocks: tuple[BlockView, ...]
