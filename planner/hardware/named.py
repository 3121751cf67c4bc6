"""A node made of a GPU from the table, with figures of one's own over it.

Scope: looking a name up, and putting a `Hardware` together.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from planner.hardware.contracts import Disks, Efficiency, Hardware
from planner.hardware.table import GPUS, Gpu

_NEAREST = 3
_CUTOFF = 0.4
"""Of difflib's ratio. Names are short: at its default of 0.6 "h100-96gb" has hardly a neighbour."""


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, in any spelling of case, spaces and hyphens, or as CUDA calls it.

    Raises:
        ValueError: for a name that is not in the table; names the nearest ones.
    """
    known = {_folded(n): gpu for gpu in GPUS for n in (gpu.name, *gpu.aliases)}
    gpu = known.get(_folded(name))
    if gpu is None:
        raise ValueError(f"gpu is {name!r}, which is not in the table: {_suggestion(name)}")
    return gpu


def named_hardware(
    gpu: str,
    *,
    host_bytes: int,
    gpus: int = 1,
    disks: Disks | None = None,
    device_bytes: int | None = None,
    d2h_bytes_per_s: float | None = None,
    h2d_bytes_per_s: float | None = None,
    link_bytes_per_s: float | None = None,
    peak_flops_per_s: Mapping[str, float] | None = None,
    efficiency: Efficiency | None = None,
) -> Hardware:
    """A node of `gpus` devices called `gpu`; what is given stands instead of the table's figure.
    Rates in `peak_flops_per_s` go over the table's dtype by dtype.

    Raises:
        ValueError: for an unknown name, or a figure that is not above 0.
    """
    found = find_gpu(gpu)
    pcie = found.pcie_bytes_per_s
    return Hardware(
        device=found.name,
        gpus=gpus,
        device_bytes=found.memory_bytes if device_bytes is None else device_bytes,
        peak_flops_per_s={**found.peak_flops_per_s, **(peak_flops_per_s or {})},
        device_bytes_per_s=found.memory_bytes_per_s,
        d2h_bytes_per_s=pcie if d2h_bytes_per_s is None else d2h_bytes_per_s,
        h2d_bytes_per_s=pcie if h2d_bytes_per_s is None else h2d_bytes_per_s,
        link_bytes_per_s=_link(found, gpus, link_bytes_per_s),
        host_bytes=host_bytes,
        disks=disks,
        efficiency=efficiency or Efficiency(),
        source=found.source,
    )


def _link(gpu: Gpu, gpus: int, given: float | None) -> float | None:
    """Peers without links of their own talk over PCIe."""
    if given is not None or gpus == 1:
        return given
    return gpu.link_bytes_per_s or gpu.pcie_bytes_per_s


def _folded(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _suggestion(name: str) -> str:
    names = [gpu.name for gpu in GPUS]
    nearest = difflib.get_close_matches(name.lower(), names, n=_NEAREST, cutoff=_CUTOFF)
    others = f"known are {', '.join(names)}"
    return f"did you mean {' or '.join(nearest)}? {others}" if nearest else others
