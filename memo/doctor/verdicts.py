"""What a machine's findings mean: a verdict each, and advice where there is something to do.

Scope: judging, nothing is looked at. Thresholds stand beside their reasons.
"""

from __future__ import annotations

from collections.abc import Iterator

from memo.doctor.contracts import DiskProbe, Finding, GpuProbe, Machine, Verdict
from planner.hardware import find_gpu
from planner.sizes import format_bytes, format_rate

_TERA = 1e12

_SLOW_LINK = 0.6
"""Of what the slot is rated. Pinned copies reach some 0.8 of it; with half of the lanes, or of the
generation, they would be at 0.4.
"""

_CROWDED = 0.1
"""Of a device's memory: more than a context of one's own takes."""

_SCARCE = 0.1
"""Of a disk's space: most file systems slow down when they are that full."""


def findings(machine: Machine) -> list[Finding]:
    """Every line of the report, in the order in which a step meets them."""
    lines = [*_gpus(machine), *_compute(machine), *_host(machine)]
    for disk in machine.disks:
        lines += _disk(disk)
    return [*lines, *_kernel(machine), _versions(machine)]


def _gpus(machine: Machine) -> Iterator[Finding]:
    if not machine.gpus:
        yield Finding(
            name="device",
            value=f"{machine.processor}, {machine.cores} cores",
            verdict=Verdict.NOTE,
            advice="no CUDA device: training would run on the processor",
        )
    for index, gpu in enumerate(machine.gpus):
        yield _memory_of(f"device {index}", gpu)
        if gpu.d2h_bytes_per_s is not None and gpu.h2d_bytes_per_s is not None:
            yield _link(f"copies {index}", gpu, gpu.d2h_bytes_per_s, gpu.h2d_bytes_per_s)


def _memory_of(name: str, gpu: GpuProbe) -> Finding:
    is_crowded = gpu.memory_bytes - gpu.free_bytes > _CROWDED * gpu.memory_bytes
    free, total = format_bytes(gpu.free_bytes), format_bytes(gpu.memory_bytes)
    return Finding(
        name=name,
        value=f"{gpu.name}, {free} free of {total}",
        verdict=Verdict.WARNING if is_crowded else Verdict.OK,
        advice="other processes have memory there: see nvidia-smi" if is_crowded else "",
    )


def _link(name: str, gpu: GpuProbe, d2h: float, h2d: float) -> Finding:
    rated = _rated_link(gpu.name)
    is_slow = rated is not None and min(d2h, h2d) < _SLOW_LINK * rated
    advice = ""
    if is_slow and rated is not None:
        advice = (
            f"the slot is rated {format_rate(rated)}: look at its lanes and generation (nvidia-smi "
            "-q -d PCIE), and bind the process to the device's NUMA node"
        )
    return Finding(
        name=name,
        value=f"to the host {format_rate(d2h)}, back {format_rate(h2d)}",
        verdict=Verdict.WARNING if is_slow else Verdict.OK,
        advice=advice,
    )


def _rated_link(name: str) -> float | None:
    try:
        return find_gpu(name).pcie_bytes_per_s
    except ValueError:  # not in the table
        return None


def _compute(machine: Machine) -> Iterator[Finding]:
    fastest = max((rate.matmul_flops_per_s for rate in machine.compute), default=0.0)
    for rate in machine.compute:
        is_slow = rate.dtype == "bfloat16" and rate.matmul_flops_per_s < fastest
        yield Finding(
            name=f"compute {rate.dtype}",
            value=f"matmul {rate.matmul_flops_per_s / _TERA:.3g} TFLOP/s, attention "
            f"{rate.attention_forward_flops_per_s / _TERA:.3g} forward, "
            f"{rate.attention_backward_flops_per_s / _TERA:.3g} backward",
            verdict=Verdict.NOTE if is_slow else Verdict.OK,
            advice="slower than float32 here: train in float32" if is_slow else "",
        )


def _host(machine: Machine) -> Iterator[Finding]:
    host = machine.host
    rate, is_limited = machine.memory_bytes_per_s, host.usable_bytes < host.installed_bytes
    available, usable = format_bytes(host.available_bytes), format_bytes(host.usable_bytes)
    speed = "" if rate is None else f"; copies move {format_rate(rate)}"
    advice = (
        f"{host.limited_by} leaves that of {format_bytes(host.installed_bytes)}: raise the limit "
        "(docker --memory, systemd MemoryMax=) for more"
    )
    yield Finding(
        name="host memory",
        value=f"{available} available of {usable}{speed}",
        verdict=Verdict.NOTE if is_limited else Verdict.OK,
        advice=advice if is_limited else "",
    )


def _disk(disk: DiskProbe) -> Iterator[Finding]:
    space = f"{format_bytes(disk.free_bytes)} free of {format_bytes(disk.size_bytes)}"
    name = f"disk {disk.directory}"
    if disk.problem is not None:
        yield Finding(name=name, value="not usable", verdict=Verdict.WARNING, advice=disk.problem)
        return
    yield _speed(name, space, disk)
    if disk.io_uring is not None:
        yield _uring(f"io_uring {disk.directory}", disk.io_uring)
    if disk.is_fixed is not None:
        yield _registered(disk)


def _speed(name: str, space: str, disk: DiskProbe) -> Finding:
    advice = list(disk.notes) if disk.is_direct is False else []
    if disk.free_bytes < _SCARCE * disk.size_bytes:
        advice.append("nearly full: free space, or name another directory")
    write, read = disk.write_bytes_per_s, disk.read_bytes_per_s
    speed = ""
    if write is not None and read is not None:
        speed = f"writes {format_rate(write)}, reads {format_rate(read)} ({disk.engine}); "
    return Finding(
        name=name,
        value=f"{speed}{space}",
        verdict=Verdict.WARNING if advice else Verdict.OK,
        advice="; ".join(advice),
    )


def _uring(name: str, refusal: str) -> Finding:
    if not refusal:
        return Finding(name=name, value="works")
    return Finding(
        name=name,
        value=f"refused: {refusal}",
        verdict=Verdict.NOTE,
        advice="threads read and write instead; to allow it: sysctl kernel.io_uring_disabled=0, "
        "and a seccomp profile that lets it through (docker's default does not)",
    )


def _registered(disk: DiskProbe) -> Finding:
    name, tried = f"registered buffers {disk.directory}", format_bytes(disk.fixed_bytes)
    if disk.is_fixed:
        return Finding(name=name, value=f"{tried} of buffers were registered")
    return Finding(
        name=name,
        value=f"{tried} of buffers could not be registered",
        verdict=Verdict.WARNING,
        advice="each transfer pins its pages anew: raise the limit of locked memory (ulimit -l "
        "unlimited, docker --ulimit memlock=-1)",
    )


def _kernel(machine: Machine) -> Iterator[Finding]:
    yield _memlock(machine)
    if machine.huge_pages == "never":
        yield Finding(
            name="huge pages",
            value="never",
            verdict=Verdict.WARNING,
            advice="buffers stay on pages of 4 KiB, where copies and disks are up to twice as "
            "slow: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    elif machine.huge_pages is not None:
        yield Finding(name="huge pages", value=machine.huge_pages)


def _memlock(machine: Machine) -> Finding:
    limit = machine.memlock_bytes
    if limit is None:
        return Finding(name="memlock", value="unlimited")
    # Who may lock without limit (root, CAP_IPC_LOCK) is not held to it: a trial tells.
    trials = [disk.is_fixed for disk in machine.disks if disk.is_fixed is not None]
    if not trials:
        return Finding(
            name="memlock",
            value=f"{format_bytes(limit)}, which was not tried",
            verdict=Verdict.NOTE,
            advice="it binds buffers that are registered with io_uring, but for root: measure to "
            "see, or raise it (ulimit -l unlimited)",
        )
    if all(trials):
        return Finding(name="memlock", value=f"{format_bytes(limit)}, which did not bind")
    return Finding(
        name="memlock",
        value=format_bytes(limit),
        verdict=Verdict.WARNING,
        advice="registering more than that with io_uring will be refused: ulimit -l unlimited",
    )


def _versions(machine: Machine) -> Finding:
    found = [f"{name} {version}" for name, version in machine.versions.items() if version]
    missing = [name for name, version in machine.versions.items() if version is None]
    return Finding(
        name="versions",
        value=", ".join(found),
        advice=f"not installed: {', '.join(missing)}" if missing else "",
    )
