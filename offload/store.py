"""The tensor store: tensors leave the device for a tier and come back, and every byte is counted.

Scope: holding and counting. Which tensor goes where is the policy's business; copies that hide
behind compute are the transfer engine's (`transfers.py`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from offload.contracts import INPLACE, MemoError, Tier, Turn, nbytes
from offload.cuda import CudaStreams
from offload.host_pool import HostPool
from offload.meter import Span
from offload.streams import Streams
from offload.threads import ThreadStreams
from offload.transfers import HostTier


class TierStore(Protocol):
    """One tier: what is saved there is loaded from there, any number of times, until it is
    dropped.
    """

    def save(self, tensors: Sequence[Tensor], turn: Turn) -> Any:
        """Return what stands for the tensors (of any shape, dtype and strides)."""

    def load(self, held: Any) -> tuple[Tensor, ...]:
        """Return the tensors on the device that they came from."""

    def drop(self, held: Any) -> None:
        """Forget them; called from finalizers."""


@dataclass(frozen=True, slots=True)
class _Kept:
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]


class DeviceTier:
    """The device itself: references."""

    def save(self, tensors: Sequence[Tensor], turn: Turn) -> _Kept:
        return _Kept(tuple(tensors), tuple(tensor._version for tensor in tensors))

    def load(self, held: _Kept) -> tuple[Tensor, ...]:
        if tuple(tensor._version for tensor in held.tensors) != held.versions:
            raise MemoError(INPLACE)
        return held.tensors

    def drop(self, held: _Kept) -> None:
        """References end with their ticket."""


@dataclass(slots=True)
class TierCount:
    """Bytes of one tier: held now, held at most, and moved there since the counts were reset."""

    held_bytes: int = 0
    peak_bytes: int = 0
    moved_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self.moved_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def remove(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes


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
    `expected_groups` (layers of the model) are the transfer engine's.
    """

    in_flight_bytes: int | None = None
    expected_groups: int = 1
    make_streams: Callable[[torch.device], Streams] = streams_of
    counts: dict[Tier, TierCount] = field(
        init=False, default_factory=lambda: {tier: TierCount() for tier in Tier}
    )
    hosts: dict[torch.device, HostTier] = field(init=False, default_factory=dict)
    _is_traced: bool = field(init=False, default=False)
    _device: DeviceTier = field(init=False, default_factory=DeviceTier)

    def __reduce__(self) -> tuple[type[TensorStore], tuple[Any, ...]]:
        # A copy of a wrapped model has lanes of its own: threads and streams are not copied.
        return TensorStore, (self.in_flight_bytes, self.expected_groups, self.make_streams)

    def put(self, tensors: Sequence[Tensor], tier: Tier, turn: Turn = Turn.LAYER) -> Ticket:
        """Store `tensors` (of one device; any shape, dtype and strides; detached) in `tier`,
        together; `turn` says when backward will want them.
        """
        detached = [tensor.detach() for tensor in tensors]
        place = self._place(tier, detached[0].device)
        size_bytes = sum(map(nbytes, detached))
        ticket = Ticket(place, place.save(detached, turn), size_bytes)
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
        for host in self.hosts.values():
            host.close_group()

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
        return self._device if tier is Tier.DEVICE else self._host(device)

    def _host(self, device: torch.device) -> HostTier:
        if device not in self.hosts:
            streams = self.make_streams(device)
            self.hosts[device] = HostTier(
                streams,
                HostPool(streams.host_memory),
                in_flight_bytes=self.in_flight_bytes,
                expected_groups=self.expected_groups,
            )
            if self._is_traced:
                self.hosts[device].start_trace()
        return self.hosts[device]


def _forget(place: TierStore, held: Any, count: TierCount, size_bytes: int) -> None:
    count.remove(size_bytes)
    place.drop(held)
