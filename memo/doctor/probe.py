"""Putting it together: everything about this machine that a plan depends on.

Scope: which parts are looked at, in which order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from memo.doctor import host
from memo.doctor.compute import LayerShape, measure_compute
from memo.doctor.contracts import ComputeRate, Machine
from memo.doctor.disk import DEFAULT_BYTES, ask_disk, probe_disk
from memo.doctor.gpu import memory_rate, probe_gpus

OnPart = Callable[[str], object]
"""Told what is looked at next."""


def probe_machine(
    directories: Sequence[Path] = (),
    *,
    measure: bool = True,
    disk_bytes: int = DEFAULT_BYTES,
    shape: LayerShape | None = None,
    budget_s: float = 0.7,
    on_part: OnPart = lambda part: None,
) -> Machine:
    """Look at this machine, and at the disks of `directories` by writing about `disk_bytes` to
    each. Without `measure` nothing is timed and nothing written. `shape` and `budget_s` are
    `measure_compute`'s.

    Raises:
        ValueError: for a size or a budget that is not above 0.
    """
    on_part("devices")
    gpus = probe_gpus(measure=measure)
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    compute: tuple[ComputeRate, ...] = ()
    memory_bytes_per_s = None
    if measure:
        on_part("memory")
        memory_bytes_per_s = memory_rate(torch.device("cpu"))
        on_part("compute")
        compute = measure_compute(device, shape=shape, budget_s=budget_s)
    disks = []
    for directory in directories:
        on_part(f"disk {directory}")
        disks.append(probe_disk(directory, disk_bytes) if measure else ask_disk(directory))
    return Machine(
        processor=host.processor(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        host=host.host_memory(),
        memlock_bytes=host.memlock_bytes(),
        huge_pages=host.huge_pages(),
        versions=host.versions(),
        memory_bytes_per_s=memory_bytes_per_s,
        gpus=gpus,
        disks=tuple(disks),
        compute=compute,
    )
