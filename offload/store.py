"""The tensor store: tensors leave the device for a tier and come back, and every byte is counted.

Scope: holding and counting. Which tensor goes where is the policy's business; copies that hide
behind compute are the transfer engine's (`transfers.py`).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from offload.budget import Budget
from offload.contracts import MemoError, Tier, Turn, nbytes
from offload.cuda import CudaStreams
from offload.disk import Disk
from offload.host_pool import ALIGNMENT_BYTES, HostPool
from offload.meter import Span
from offload.streams import Streams
from offload.threads import ThreadStreams
from offload.tiers import DeviceTier, TierCount, TierStore
from offload.transfers import HostTier


@dataclass(slots=True, weakref_slot=True, eq=False)
class Ticket:
    """Stored tensors. Dropping the last reference to their ticket frees them."""

    tier: TierStore
    held: Any
    size_bytes: int


def streams_of(device: torch.device) -> Streams:
    """The streams of a device.

    Raises:
        MemoError: for a device that has none here.
    """
    if device.type == "cuda":
        return CudaStreams(device)
    if device.type == "cpu":
        return ThreadStreams()
    raise MemoError(f"placement on the host needs a CUDA device or a CPU, not {device.type!r}")


@dataclass(slots=True)
class TensorStore:
    """Stores tensors in tiers.

    `counts` are kept per tier; on a machine whose device is the CPU, DEVICE and HOST are the same
    memory but are counted apart, as they would be beside a GPU. `in_flight_bytes` and
    `expected_groups` (layers of the model) are the transfer engine's. `host_bytes` limits the
    memory on the host, which is then divided among `devices`; `open_disk` gives the SSD tier its
    disk. Where either is first used, the system may refuse it (`MemoryError`, `MemoError`).
    """

    in_flight_bytes: int | None = None
    expected_groups: int = 1
    make_streams: Callable[[torch.device], Streams] = streams_of
    host_bytes: int | None = None
    devices: tuple[torch.device, ...] = ()
    open_disk: Callable[[], Disk] | None = None
    counts: dict[Tier, TierCount] = field(
        init=False, default_factory=lambda: {tier: TierCount() for tier in Tier}
    )
    hosts: dict[torch.device, HostTier] = field(init=False, default_factory=dict)
    _is_traced: bool = field(init=False, default=False)
    _device: DeviceTier = field(init=False, default_factory=DeviceTier)
    _disk: Disk | None = field(init=False, default=None)
    _process: int = field(init=False, default_factory=os.getpid)

    @property
    def disk(self) -> Disk | None:
        """The SSD tier's, opened when it is first asked for; None when there is none."""
        if self._disk is None and self.open_disk is not None:
            self._disk = self.open_disk()
        return self._disk

    def prepare(self) -> None:
        """Open the disk and allocate the limited memory now; otherwise their first use does, as in
        copies of a store.
        """
        for device in self.devices if self.host_bytes is not None else ():
            self._host(device)
        self._fix()

    def __reduce__(self) -> tuple[type[TensorStore], tuple[Any, ...]]:
        # A copy of a wrapped model has lanes of its own: threads, streams and files are not copied.
        options = (self.host_bytes, self.devices, self.open_disk)
        return TensorStore, (
            self.in_flight_bytes,
            self.expected_groups,
            self.make_streams,
            *options,
        )

    def put(self, tensors: Sequence[Tensor], tier: Tier, turn: Turn = Turn.LAYER) -> Ticket:
        """Store `tensors` (of one device; any shape, dtype and strides; detached) in `tier`,
        together; `turn` says when backward will want them.
        """
        detached = [tensor.detach() for tensor in tensors]
        place = self._place(tier, detached[0].device)
        size_bytes = sum(map(nbytes, detached))
        ticket = Ticket(place, place.save(detached, turn, tier), size_bytes)
        count = self.counts[tier]
        count.add(size_bytes)
        weakref.finalize(ticket, _forget, place, ticket.held, count, size_bytes).atexit = False
        return ticket

    def get(self, ticket: Ticket) -> tuple[Tensor, ...]:
        """The stored tensors, on the device that they came from.

        Raises:
            MemoError: when one was changed in place while it was held by reference, or copied.
            TransferError: when a copy failed.
        """
        return ticket.tier.load(ticket.held)

    def close_group(self) -> None:
        """What was put since the last call belongs to one layer call."""
        slabs = sum(host.pool.slabs_made for host in self.hosts.values())
        for host in self.hosts.values():
            host.close_group()
        if slabs != sum(host.pool.slabs_made for host in self.hosts.values()):
            self._fix()

    def sweep(self) -> None:
        """Free what was dropped."""
        for host in self.hosts.values():
            host.sweep()

    def reset_peaks(self) -> None:
        """Let peaks start again from what is held now, and moved bytes and lanes from 0."""
        for count in self.counts.values():
            count.peak_bytes, count.moved_bytes = count.held_bytes, 0
        for host in self.hosts.values():
            host.meter.reset()

    @contextmanager
    def traced(self) -> Iterator[dict[torch.device, list[Span]]]:
        """Keep spans of lanes and compute inside; they are in the result afterwards. Does not nest.

        Raises:
            MemoError: when it is nested.
        """
        if self._is_traced:
            raise MemoError("a trace of this model is being taken already")
        spans: dict[torch.device, list[Span]] = {}
        self._is_traced = True
        for host in self.hosts.values():
            host.start_trace()
        try:
            yield spans
        finally:
            self._is_traced = False
            for device, host in self.hosts.items():
                spans[device] = host.stop_trace()

    @contextmanager
    def marked(self, name: str, device: torch.device) -> Iterator[None]:
        """Show what compute does inside as `name` in a trace, if one is being taken."""
        if not self._is_traced:
            yield
            return
        host = self._host(device)
        start = host.streams.current().record()
        yield
        host.meter.mark(name, start, host.streams.current().record())

    def _place(self, tier: Tier, device: torch.device) -> TierStore:
        if tier is Tier.DEVICE:
            return self._device
        if os.getpid() != self._process:  # which has neither its threads nor its streams
            raise MemoError(
                f"the model was wrapped in process {self._process}, of which this one is a fork: "
                "wrap it in the process that trains it"
            )
        if tier is Tier.SSD and self.disk is None:
            raise MemoError("tensors were to go to the SSD tier of a store that has no disk")
        return self._host(device)

    def _host(self, device: torch.device) -> HostTier:
        if device not in self.hosts:
            streams = self.make_streams(device)
            self.hosts[device] = HostTier(
                streams,
                self._pool(streams, device),
                budget=Budget(self.in_flight_bytes),
                expected_groups=self.expected_groups,
                disk=self.disk,
            )
            if self._is_traced:
                self.hosts[device].start_trace()
        return self.hosts[device]

    def _pool(self, streams: Streams, device: torch.device) -> HostPool:
        alignment_bytes = ALIGNMENT_BYTES if self.disk is None else self.disk.alignment_bytes
        if self.host_bytes is None:
            return HostPool(streams.host_memory, alignment_bytes=alignment_bytes)
        if device not in self.devices:
            raise MemoError(
                f"host_bytes was divided among {', '.join(map(str, self.devices))} when the model "
                f"was wrapped, and now a layer runs on {device}: wrap the model where it is trained"
            )
        return HostPool(
            streams.host_memory,
            limit_bytes=self.host_bytes // len(self.devices),
            alignment_bytes=alignment_bytes,
        )

    def _fix(self) -> None:
        """Tell the disk the memory that is written and read."""
        if self.disk is not None:
            memories = [memory for host in self.hosts.values() for memory in host.pool.memories]
            self.disk.fix(memories)


def _forget(place: TierStore, held: Any, count: TierCount, size_bytes: int) -> None:
    count.remove(size_bytes)
    place.drop(held)
