"""What the card does: its rate at large matrix products, and the peaks of its memory.

Scope: reading a device. On a CPU the same products are small, and there are no peaks to read.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

_PRODUCTS = {
    "cuda": ((8192, 8192, 8192), (16384, 4096, 14336), (16384, 14336, 4096)),
    "cpu": ((256, 256, 256),),
}
"""Rows, inner and columns: a large square one, and an 8B Llama's MLP."""

_ROUNDS, _PER_ROUND = 10, 4


def matmul_flops_per_s(device: torch.device) -> float:
    """FLOPs a second of bf16 matrix products: of each shape the median, of the shapes the best."""
    return max(_rate(device, shape) for shape in _PRODUCTS[device.type])


def _rate(device: torch.device, shape: tuple[int, int, int]) -> float:
    rows, inner, columns = shape
    # Random values: products of zeros take less power, and so run at a higher clock.
    a = torch.randn(rows, inner, device=device).bfloat16()
    b = torch.randn(inner, columns, device=device).bfloat16()
    seconds = [_seconds(device, lambda: a @ b) for _ in range(_ROUNDS + 2)][2:]
    return 2.0 * rows * inner * columns / median(seconds)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started_s = time.perf_counter()
    for _ in range(_PER_ROUND):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started_s) / _PER_ROUND


def name(device: str) -> str:
    """The card's name, asked for in another process: one that asks holds a context on the card."""
    if device == "cpu":
        return "cpu"
    asked = "import sys, torch; print(torch.cuda.get_device_name(sys.argv[1]))"
    command = [sys.executable, "-c", asked, device]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def prepare(device: torch.device) -> None:
    """Before the first allocation: let segments grow, as everyone who trains long sequences does;
    otherwise fragments, not bytes, would say how long a sequence fits.
    """
    if device.type != "cuda":
        return
    settings: Any = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    settings = settings or torch.cuda.memory._set_allocator_settings
    settings("expandable_segments:True")


def reset_peaks(device: torch.device) -> None:
    """Let all peaks start from what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        reset: Any = getattr(torch.cuda, "reset_peak_host_memory_stats", None)
        if reset is not None:
            reset()


def peaks(device: torch.device) -> dict[str, int]:
    """Peaks since the reset, by the names of a sample's fields; nothing on a CPU.

    `host_bytes` is what torch's pinned allocator took, which rounds up to powers of two.
    """
    if device.type != "cuda":
        return {}
    found = {
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
        "capacity_bytes": torch.cuda.get_device_properties(device).total_memory,
    }
    host: Any = getattr(torch.cuda, "host_memory_stats", None)
    if host is not None:
        found["host_bytes"] = int(host().get("allocated_bytes.peak", 0))
    return found
