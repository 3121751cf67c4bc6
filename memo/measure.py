"""Measure and limit the memory of this process: exact peaks, a timeline for pictures, a real limit.

In scope: the high-water mark of one piece of work (`PeakMemory`), the settings of glibc's malloc
that make it repeatable (`exact_malloc`), samples over time (`MemoryTimeline`), a limit that the
kernel enforces (`limit_memory`) and the question whether an error means "out of memory".
Out of scope: what the memory holds (see torch's profiler), other processes, and any prediction.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import psutil
import torch

from offload.contracts import MemoError

KIB = 1024
MIB = 1024 * KIB

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"  # proc(5), since Linux 4.0

_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3

_FALLBACK_INTERVAL_S = 0.005

Method = Literal["kernel high-water mark", "sampled", "cuda allocator"]


class MeasureError(MemoError):
    """This system has no means for the measurement or the limit that was asked for."""


def resident_bytes() -> int:
    """Bytes of this process that are in memory now, file pages (libraries, mapped weights) too."""
    return int(psutil.Process().memory_info().rss)


def exact_malloc(threshold_bytes: int = MIB) -> bool:
    """Make glibc give every freed block of `threshold_bytes` or more back to the kernel at once.

    By default glibc raises its mmap threshold to the size of each big block that is freed, up to
    32 MiB, and from then on serves blocks below it from a heap that it gives back only at the top.
    Resident memory then depends on the history of the process, not on the tensors that live, and
    the same step measured twice differs by tens of percent. A fixed threshold turns that off.

    Call it first thing in the process: blocks that were taken before stay in the heap, and free
    ones among them serve later requests without ever going back (a step's peak measured after a
    late call was 15% to 60% too high). It holds for the rest of the process.

    The price is a page fault for each page of each new block, 45% of the time of a small training
    step. So measure times in one process, without it, and peaks in another, with it.

    Returns whether it was done; False where the C library is not glibc.
    """
    libc = _glibc()
    if libc is None:
        return False
    done = libc.mallopt(_M_MMAP_THRESHOLD, threshold_bytes)
    return bool(done and libc.mallopt(_M_TRIM_THRESHOLD, threshold_bytes))


def release_unused_memory() -> None:
    """Collect garbage, and give what malloc holds but nobody uses back to the kernel."""
    gc.collect()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


class PeakMemory:
    """The memory that the work inside a `with` block needed at its highest point.

    ::

        with PeakMemory() as peak:
            model(**batch).loss.backward()
        print(peak.growth_bytes)

    On the CPU this is the resident memory of the whole process, its highest point kept by the
    kernel itself (`VmHWM`, reset on entry), so nothing is polled and no short peak is missed. The
    kernel counts pages per core and sums up lazily: expect errors of some 100 KiB. Where the mark
    can't be reset (not Linux, some sandboxes) a thread samples every 5 ms instead and `method`
    says "sampled": short peaks may then be missed. With a CUDA `device` it is the live bytes of
    torch's allocator on that device.

    There is one mark per process: don't nest, and don't run two in two threads.

    Attributes: `base_bytes` on entry, `peak_bytes` the highest in between, both set on exit too
    when an exception leaves the block; `method` how it was measured.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.base_bytes = 0
        self.peak_bytes = 0
        self.method: Method = "kernel high-water mark"
        self._sampler: MemoryTimeline | None = None

    @property
    def growth_bytes(self) -> int:
        """How far the peak rose above what was there on entry."""
        return self.peak_bytes - self.base_bytes

    def __enter__(self) -> PeakMemory:
        release_unused_memory()
        if self.device.type == "cuda":
            self._enter_cuda()
        elif _reset_high_water_mark():
            self.base_bytes = _status_bytes("VmRSS")
        else:
            self._enter_sampled()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._sampler is not None:
            self._sampler.__exit__(kind, error, trace)
            self.peak_bytes = max(size for _, size in self._sampler.samples)
            self._sampler = None
        else:
            self.peak_bytes = _status_bytes("VmHWM")

    def _enter_cuda(self) -> None:
        self.method = "cuda allocator"
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self.base_bytes = torch.cuda.memory_allocated(self.device)

    def _enter_sampled(self) -> None:
        self.method = "sampled"
        self.base_bytes = resident_bytes()
        self._sampler = MemoryTimeline(_FALLBACK_INTERVAL_S).__enter__()


class MemoryTimeline:
    """Resident memory over time, for pictures; a sampled peak is not exact, see `PeakMemory`.

    `samples` holds (seconds since entry, resident bytes), one on entry, one each `interval_s`, one
    on exit. The thread sleeps in between, and a sample takes some 20 us.
    """

    def __init__(self, interval_s: float = 0.02) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s: got {interval_s}, takes a number above 0")
        self.interval_s = interval_s
        self.samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-timeline", daemon=True)
        self._started_s = 0.0

    def __enter__(self) -> MemoryTimeline:
        self._started_s = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self._sample()

    def _sample(self) -> None:
        self.samples.append((time.perf_counter() - self._started_s, resident_bytes()))


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimit:
    """A limit in force: `kind` names the mechanism, `used_bytes` what counted when it was set."""

    kind: str
    limit_bytes: int
    used_bytes: int


@contextmanager
def limit_memory(limit_bytes: int) -> Iterator[MemoryLimit]:
    """Let the kernel refuse this process more than `limit_bytes` while the block runs.

    The limit is `RLIMIT_DATA`: the private writable memory of the process (Linux 4.7 and later),
    that is malloc's, every CPU tensor's and the threads' stacks. It differs from resident memory
    in that pages count once they are mapped, touched or not, and that program code, files mapped
    read-only and shared memory never count. `RLIMIT_AS` would count address space that is only
    reserved, gigabytes with torch. A control group would count resident pages, but only an
    administrator (`systemd-run -p MemoryMax=`) can put a process into one without taking it out
    of the one that its service manager or container watches, and it kills where this refuses.

    What does not fit raises `MemoryError`, or torch's RuntimeError (see `is_out_of_memory`); a
    library that can't handle a refused block ends the process, so run the work in a child whose
    death the parent takes for "does not fit". Threads that start inside need room for stacks.

    Raises: ValueError if `limit_bytes` is not positive; MeasureError where the kernel doesn't
    enforce it.
    """
    if limit_bytes <= 0:
        raise ValueError(f"limit_bytes: got {limit_bytes}, takes a number of bytes above 0")
    if platform.system() != "Linux":
        raise MeasureError("a memory limit needs Linux, where RLIMIT_DATA counts every mapping")
    import resource  # the module exists on Unix only

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield MemoryLimit(
            kind="RLIMIT_DATA", limit_bytes=wanted, used_bytes=_status_bytes("VmData")
        )
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or what it was raised from, says that memory was refused."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    refused = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "bad_alloc")
    if isinstance(error, (RuntimeError, OSError)) and any(text in str(error) for text in refused):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER_MARK)
    except OSError:  # no /proc, or a sandbox without this file: the caller samples instead
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * KIB
    raise MeasureError(f"{_STATUS} has no {field}")
