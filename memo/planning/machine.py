"""The machine that a model is on, with the model in it, as what is planned for.

Scope: from probes to a node. Of memory, what the model takes already counts as free: a plan counts
model states itself. A sixteenth of the rest is left alone, for what allocators lose between
tensors. The share is chosen, not measured. A processor's memory is divided between both tiers.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from memo.doctor.contracts import DiskProbe
from memo.doctor.disk import probe_disk
from memo.doctor.hardware import hardware_of, shared_memory
from memo.doctor.probe import probe_machine
from memo.planning.live import LiveModel
from memo.planning.node import Node
from offload import MemoError
from ssd.settings import best_setting

USABLE = 15 / 16

CALIBRATION_S = 0.2
"""For each of the three kinds of work that are measured, in each of two dtypes."""


def machine_of(
    root: nn.Module, live: LiveModel, directories: Sequence[Path], spill_bytes: int | None
) -> Node:
    """The machine of the model, one device for each of its ranks, with disks in `directories`, of
    which `spill_bytes` may be taken (None: what is free).

    Raises:
        MemoError: when a disk cannot be used, or the device's speed cannot be told.
    """
    device = next(root.parameters()).device
    machine = probe_machine(budget_s=CALIBRATION_S)
    disks = tuple(map(_disk, directories))
    # As if all were like this one.
    gpus = (machine.gpus[device.index or 0],) * live.ranks if device.type == "cuda" else ()
    found = hardware_of(replace(machine, gpus=gpus, disks=disks), dtype=live.dtype)
    if spill_bytes is not None and found.disks is not None:
        each_bytes = spill_bytes // found.disks.count
        found = replace(found, disks=replace(found.disks, size_bytes=each_bytes))
    free_bytes = int(machine.host.available_bytes * USABLE)
    device_bytes, host_bytes = (
        (_free_bytes(root, device), free_bytes)
        if gpus
        else _shared_bytes(root, free_bytes, live.ranks, is_staging=found.disks is not None)
    )
    hardware = replace(
        found,
        gpus=live.ranks,
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        # Where peers' rate is not known, they are reached through the host.
        link_bytes_per_s=found.link_bytes_per_s or found.h2d_bytes_per_s,
    )
    return Node(hardware, "cuda" if gpus else "cpu")


def _free_bytes(root: nn.Module, device: torch.device) -> int:
    """Of a GPU."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    unused_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free_bytes + unused_bytes) * USABLE) + held_bytes(root, device)


def _shared_bytes(
    root: nn.Module, free_bytes: int, ranks: int, *, is_staging: bool
) -> tuple[int, int]:
    """Of a processor's memory: one rank's as its device, and all ranks' as the host."""
    all_bytes, host_bytes = shared_memory(free_bytes, is_staging=is_staging)
    return all_bytes // ranks + held_bytes(root, torch.device("cpu")), host_bytes


def held_bytes(root: nn.Module, device: torch.device) -> int:
    """Of weights, buffers and gradients that are on the device now."""
    held = [*root.parameters(), *root.buffers()]
    held += [param.grad for param in root.parameters() if param.grad is not None]
    parts = (t.to_local() if isinstance(t, DTensor) else t for t in held if t.device == device)
    storages = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts
    }
    return sum(storages.values())


def _disk(directory: Path) -> DiskProbe:
    """By what was saved of it, else measured.

    Raises:
        MemoError: when it cannot be used.
    """
    saved = best_setting(directory)
    if saved is None:
        found = probe_disk(directory)
        if found.problem is not None:
            raise MemoError(f"{directory} cannot be planned for: {found.problem}")
        return found
    usage = shutil.disk_usage(directory)
    return DiskProbe(
        directory=str(directory),
        device=directory.stat().st_dev,
        size_bytes=usage.total,
        free_bytes=usage.free,
        engine=saved.engine,
        write_bytes_per_s=saved.write_bytes_per_s,
        read_bytes_per_s=saved.read_bytes_per_s,
    )
