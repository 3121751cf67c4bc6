"""CUDA devices and memory: what they are, and how fast copies are.

Scope: reading properties, and timing copies from, to and within a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from memo.doctor.contracts import GpuProbe

COPY_BYTES = 256 << 20
_ROUNDS = 7


def probe_gpus(*, measure: bool = True) -> tuple[GpuProbe, ...]:
    """Every device that is visible; with `measure` copies are timed, one device after another."""
    if not torch.cuda.is_available():
        return ()
    return tuple(_probe(index, measure) for index in range(torch.cuda.device_count()))


def _probe(index: int, measure: bool) -> GpuProbe:
    device = torch.device("cuda", index)
    free_bytes, memory_bytes = torch.cuda.mem_get_info(device)
    found = GpuProbe(
        name=torch.cuda.get_device_name(device), memory_bytes=memory_bytes, free_bytes=free_bytes
    )
    if not measure:
        return found
    d2h, h2d = copy_rates(device)
    within = memory_rate(device)
    return replace(found, d2h_bytes_per_s=d2h, h2d_bytes_per_s=h2d, memory_bytes_per_s=within)


def copy_rates(device: torch.device, size_bytes: int = COPY_BYTES) -> tuple[float, float]:
    """Bytes a second from the device to pinned memory and back, the medians of some rounds."""
    there = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    here = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    d2h_s = _seconds(device, lambda: here.copy_(there, non_blocking=True))
    h2d_s = _seconds(device, lambda: there.copy_(here, non_blocking=True))
    return size_bytes / d2h_s, size_bytes / h2d_s


def memory_rate(device: torch.device, size_bytes: int = COPY_BYTES) -> float:
    """Bytes a second that a copy within the device (or the host, for "cpu") reads and writes."""
    source, target = (torch.ones(size_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size_bytes / _seconds(device, lambda: target.copy_(source))


def _seconds(device: torch.device, copy: Callable[[], Tensor]) -> float:
    once = _once_on_cuda if device.type == "cuda" else _once_on_host
    return median([once(device, copy) for _ in range(_ROUNDS + 1)][1:])


def _once_on_cuda(device: torch.device, copy: Callable[[], Tensor]) -> float:
    stream = torch.cuda.current_stream(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        start.record(stream)
        copy()
        end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _once_on_host(device: torch.device, copy: Callable[[], Tensor]) -> float:
    started_s = time.perf_counter()
    copy()
    return time.perf_counter() - started_s
