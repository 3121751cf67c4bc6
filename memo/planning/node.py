"""The machine to plan for: named, described, or this one.

Scope: from what a user says of GPUs, memory and disks to a `Hardware`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memo.doctor.hardware import hardware_of, shared_memory
from memo.doctor.probe import probe_machine
from memo.tracing.runtime import DeviceKind
from planner.hardware import Disks, Hardware, named_hardware, parse_disks
from planner.sizes import MOST, parse_bytes, parse_rate

Size = int | str
"""Bytes, or a size as people write it: `80GB`, `1TiB`."""

TERABYTE = 10**12

_MOST_TBW = MOST // TERABYTE

MOST_GPUS = 1 << 20
"""Of a node: numbers up to it are tried for divisors."""


@dataclass(frozen=True, slots=True)
class Node:
    """What is planned for; `device_kind`: whose kernels the model runs on; `is_here`: it is this
    machine.
    """

    hardware: Hardware
    device_kind: DeviceKind
    is_here: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeArguments:
    """What was said of the machine; None: nothing. Without `gpu` and `hardware` it is this one.
    `endurance_tbw`: terabytes that may be written to all its disks together.
    """

    gpus: int
    gpu: str | None = None
    gpu_memory: Size | None = None
    host_memory: Size | None = None
    ssd: str | Disks | None = None
    pcie: float | str | None = None
    hardware: Hardware | None = None
    dtype: str
    endurance_tbw: float | None = None


def find_node(said: NodeArguments) -> Node:
    """The machine that was said, or this one, whose speed is measured (some seconds).

    Raises:
        ValueError: for a name, size or number that is not understood, and for two descriptions of
            one thing.
        MemoError: when this machine's speed cannot be told.
    """
    if type(said.gpus) is not int or not 1 <= said.gpus <= MOST_GPUS:
        raise ValueError(f"gpus is {said.gpus!r}: takes a whole number from 1 to {MOST_GPUS}")
    if said.hardware is not None:
        return Node(_described(said, said.hardware), "cuda")
    node = Node(_named(said, said.gpu), "cuda") if said.gpu is not None else _probed(said)
    return replace(node, hardware=_enduring(node.hardware, said.endurance_tbw))


def _enduring(hardware: Hardware, endurance_tbw: float | None) -> Hardware:
    """Each disk with its share of what may be written."""
    if endurance_tbw is None:
        return hardware
    if not 0 < endurance_tbw <= _MOST_TBW:
        raise ValueError(
            f"endurance_tbw is {endurance_tbw}: takes terabytes above 0, {_MOST_TBW:.0e} at most"
        )
    if hardware.disks is None:
        raise ValueError("endurance_tbw is given, and no ssd: takes both")
    each = max(1, round(endurance_tbw * TERABYTE / hardware.disks.count))
    return replace(hardware, disks=replace(hardware.disks, endurance_bytes=each))


def _described(said: NodeArguments, hardware: Hardware) -> Hardware:
    names = ("gpu", "gpu_memory", "host_memory", "ssd", "pcie", "endurance_tbw")
    for name in (name for name in names if getattr(said, name) is not None):
        raise ValueError(f"{name} is given beside hardware, which says it already: takes one")
    if hardware.gpus > MOST_GPUS:
        raise ValueError(f"hardware.gpus is {hardware.gpus}: takes {MOST_GPUS} at most")
    if said.gpus not in (1, hardware.gpus):
        raise ValueError(f"gpus is {said.gpus}: hardware has {hardware.gpus}")
    return hardware


def _named(said: NodeArguments, gpu: str) -> Hardware:
    if said.host_memory is None:
        raise ValueError(
            f"host_memory is not given: a node of gpu={gpu!r} takes that of its host, such as 1TB"
        )
    rate = _rate(said.pcie)
    return named_hardware(
        gpu,
        gpus=said.gpus,
        host_bytes=size_of(said.host_memory, "host_memory"),
        disks=_disks(said.ssd),
        device_bytes=None if said.gpu_memory is None else size_of(said.gpu_memory, "gpu_memory"),
        d2h_bytes_per_s=rate,
        h2d_bytes_per_s=rate,
    )


def _probed(said: NodeArguments) -> Node:
    host_bytes = None if said.host_memory is None else size_of(said.host_memory, "host_memory")
    device_bytes = None if said.gpu_memory is None else size_of(said.gpu_memory, "gpu_memory")
    disks, rate = _disks(said.ssd), _rate(said.pcie)
    machine = probe_machine()
    found = max(1, len(machine.gpus))
    if said.gpus > found:
        raise ValueError(
            f"gpus is {said.gpus}, and this machine has {len(machine.gpus)}: to plan for another "
            "one, name its gpu"
        )
    hardware = replace(hardware_of(machine, dtype=said.dtype), gpus=said.gpus)
    if disks is not None:
        hardware = replace(hardware, disks=disks)
    if not machine.gpus:
        free_bytes = machine.host.available_bytes
        device_bytes, host_bytes = _shared(hardware, free_bytes, device_bytes, host_bytes)
    if host_bytes is not None:
        hardware = replace(hardware, host_bytes=host_bytes)
    if device_bytes is not None:
        hardware = replace(hardware, device_bytes=device_bytes)
    if rate is not None:
        hardware = replace(hardware, d2h_bytes_per_s=rate, h2d_bytes_per_s=rate)
    return Node(hardware, "cuda" if machine.gpus else "cpu", is_here=True)


def _shared(
    hardware: Hardware, free_bytes: int, device_bytes: int | None, host_bytes: int | None
) -> tuple[int, int]:
    """A processor's memory as its device's and its host's. What was given of one is not the
    other's; what was given of both is believed.

    Raises:
        ValueError: when the host is given all there is.
    """
    device, host = shared_memory(free_bytes, is_staging=hardware.disks is not None)
    if device_bytes is not None:
        left_bytes = max(1, free_bytes - device_bytes)
        return device_bytes, min(host, left_bytes) if host_bytes is None else host_bytes
    if host_bytes is None:
        return device, host
    if host_bytes >= free_bytes:
        raise ValueError(
            f"host_memory is {host_bytes} bytes: without a GPU the model is in the same memory, of "
            f"which {free_bytes} bytes are free; takes less, or gpu_memory as well"
        )
    return free_bytes - host_bytes, host_bytes


def size_of(size: Size, name: str) -> int:
    """Bytes.

    Raises:
        ValueError: for what is no size above 0; opens with `name`.
    """
    return parse_bytes(str(size), name)


def _disks(ssd: str | Disks | None) -> Disks | None:
    return parse_disks(ssd) if isinstance(ssd, str) else ssd


def _rate(rate: float | str | None) -> float | None:
    return parse_rate(rate, "pcie") if isinstance(rate, str) else rate
