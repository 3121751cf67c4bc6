"""A rank's share of a node: its lanes, and its budgets of memory and disks.

Scope: arithmetic on hardware. A rank has its own device and lanes to the host; the node's host
memory and disks it shares with the others.
"""

from __future__ import annotations

from planner.hardware.contracts import Hardware
from planner.swap.contracts import Budgets, Rates


def rates_of(hardware: Hardware, dtype: str, *, sharing: int | None = None) -> Rates:
    """A rank's lanes when `sharing` ranks (None: one a GPU) use the node's disks at once."""
    ranks, disks, link = sharing or hardware.gpus, hardware.disks, hardware.efficiency.link
    return Rates(
        d2h_bytes_per_s=hardware.d2h_bytes_per_s * link,
        h2d_bytes_per_s=hardware.h2d_bytes_per_s * link,
        ssd_write_bytes_per_s=disks.total_write_bytes_per_s / ranks if disks else 0.0,
        ssd_read_bytes_per_s=disks.total_read_bytes_per_s / ranks if disks else 0.0,
        peak_flops_per_s=hardware.peak(dtype),
    )


def budgets_of(
    hardware: Hardware, *, sharing: int | None = None, in_flight_bytes: int | None = None
) -> Budgets:
    """A rank's share of the node's memory and disks."""
    ranks, disks = sharing or hardware.gpus, hardware.disks
    return Budgets(
        device_bytes=hardware.device_bytes,
        host_bytes=hardware.host_bytes // ranks,
        ssd_bytes=disks.total_bytes // ranks if disks else 0,
        in_flight_bytes=in_flight_bytes,
    )
