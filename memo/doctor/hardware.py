"""A machine as the planner's `Hardware`: what was measured, and the table where nothing was.

Scope: one conversion. A measured rate is a peak with an efficiency of 1, but for a GPU that the
table knows: its peak stays, as what MFU is counted against, and the efficiency is what was measured
of it. On a processor, device and host are one memory, so nothing is put on the host but what is
staged for an SSD, for which an eighth is set apart (chosen, not measured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memo.doctor.contracts import ComputeRate, DiskProbe, GpuProbe, Machine
from offload import MemoError
from planner.hardware import Disks, Efficiency, Gpu, Hardware, find_gpu

STAGING = 1 / 8


@dataclass(frozen=True, slots=True)
class _Compute:
    peak_flops_per_s: Mapping[str, float]
    matmul: float
    attention_forward: float
    attention_backward: float


def hardware_of(machine: Machine, *, dtype: str = "bfloat16") -> Hardware:
    """The machine to plan for, with efficiencies for `dtype`. Without a GPU the processor is the
    device, and its memory is divided between both tiers (`shared_memory`). All GPUs count as the
    first one, whose free memory is what allocations may take; all disks as the slowest, on its
    least free space, each file system once.

    Raises:
        MemoError: when neither a measurement nor the table says what the device computes in
            `dtype`, or how fast it copies.
    """
    gpu = machine.gpus[0] if machine.gpus else None
    known = None if gpu is None else _known(gpu.name)
    compute = _measured(machine.compute, known, dtype) or _stated(known, dtype)
    if compute is None:
        known_dtypes = ", ".join(rate.dtype for rate in machine.compute) or "nothing"
        raise MemoError(
            f"what this machine computes in {dtype} is not known (measured: {known_dtypes}): take "
            "another dtype, or probe with measure=True"
        )
    d2h, h2d, link = _links(machine, gpu, known)
    disks, available_bytes = _disks(machine.disks), machine.host.available_bytes
    device_bytes, host_bytes = (
        (gpu.free_bytes, available_bytes)
        if gpu is not None
        else shared_memory(available_bytes, is_staging=disks is not None)
    )
    return Hardware(
        device=machine.processor if gpu is None else gpu.name,
        gpus=max(len(machine.gpus), 1),
        device_bytes=device_bytes,
        peak_flops_per_s=compute.peak_flops_per_s,
        device_bytes_per_s=_memory_rate(machine, gpu, known),
        d2h_bytes_per_s=d2h,
        h2d_bytes_per_s=h2d,
        link_bytes_per_s=_peers(machine, known),
        host_bytes=host_bytes,
        disks=disks,
        efficiency=Efficiency(
            matmul=compute.matmul,
            attention_forward=compute.attention_forward,
            attention_backward=compute.attention_backward,
            link=link,
        ),
        source="measured on this machine",
    )


def shared_memory(size_bytes: int, *, is_staging: bool) -> tuple[int, int]:
    """A processor's memory, in bytes, as its device's and its host's; `is_staging`: there is an
    SSD. A host has a byte at least.
    """
    host_bytes = int(size_bytes * STAGING) if is_staging else 1
    return size_bytes - host_bytes, host_bytes


def _known(name: str) -> Gpu | None:
    try:
        return find_gpu(name)
    except ValueError:  # not in the table
        return None


def _measured(rates: Sequence[ComputeRate], known: Gpu | None, dtype: str) -> _Compute | None:
    chosen = next((rate for rate in rates if rate.dtype == dtype), None)
    if chosen is None:
        return None
    peaks = {rate.dtype: _fastest(rate) for rate in rates}
    if known is not None:
        # Never below what was seen, so that no share passes 1.
        peaks |= {d: max(peak, peaks.get(d, 0.0)) for d, peak in known.peak_flops_per_s.items()}
    peak = peaks[dtype]
    return _Compute(
        peaks,
        chosen.matmul_flops_per_s / peak,
        chosen.attention_forward_flops_per_s / peak,
        chosen.attention_backward_flops_per_s / peak,
    )


def _fastest(rate: ComputeRate) -> float:
    return max(
        rate.matmul_flops_per_s,
        rate.attention_forward_flops_per_s,
        rate.attention_backward_flops_per_s,
    )


def _stated(known: Gpu | None, dtype: str) -> _Compute | None:
    if known is None or dtype not in known.peak_flops_per_s:
        return None
    shares = Efficiency()
    return _Compute(
        known.peak_flops_per_s, shares.matmul, shares.attention_forward, shares.attention_backward
    )


def _links(machine: Machine, gpu: GpuProbe | None, known: Gpu | None) -> tuple[float, float, float]:
    """To the host, back, and the share of both that is counted on."""
    if gpu is None:
        # A copy reads what it writes.
        rate = _memory_rate(machine, gpu, known) / 2
        return rate, rate, 1.0
    if gpu.d2h_bytes_per_s is not None and gpu.h2d_bytes_per_s is not None:
        return gpu.d2h_bytes_per_s, gpu.h2d_bytes_per_s, 1.0
    if known is None:
        raise MemoError(f"copies of {gpu.name} were not measured: probe with measure=True")
    return known.pcie_bytes_per_s, known.pcie_bytes_per_s, Efficiency().link


def _memory_rate(machine: Machine, gpu: GpuProbe | None, known: Gpu | None) -> float:
    rate = machine.memory_bytes_per_s if gpu is None else gpu.memory_bytes_per_s
    if rate is None and known is not None:
        rate = known.memory_bytes_per_s
    if rate is None:
        raise MemoError("the device's memory was not measured: probe with measure=True")
    return rate


def _peers(machine: Machine, known: Gpu | None) -> float | None:
    if len(machine.gpus) < 2 or known is None:
        return None
    return known.link_bytes_per_s or known.pcie_bytes_per_s


def _disks(probes: Sequence[DiskProbe]) -> Disks | None:
    usable = list(
        {p.device: p for p in probes if p.write_bytes_per_s and p.read_bytes_per_s}.values()
    )
    if not usable:
        return None
    return Disks(
        count=len(usable),
        size_bytes=min(probe.free_bytes for probe in usable),
        write_bytes_per_s=min(probe.write_bytes_per_s or 0.0 for probe in usable),
        read_bytes_per_s=min(probe.read_bytes_per_s or 0.0 for probe in usable),
    )
