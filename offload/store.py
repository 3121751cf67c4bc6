"""The tensor store: tensors leave the device for a tier and come back, and every byte is counted.

Scope: holding and counting. Which tensor goes where is the policy's business; overlap of the copies
is the transfer engine's. A tier is anything with `save` and `load` (`TierStore`).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from offload.contracts import MemoError, Tier, nbytes


class TierStore(Protocol):
    """One tier: what is saved there is loaded from there once, or dropped with its ticket."""

    def save(self, tensor: Tensor) -> Tensor:
        """Return what holds the tensor's bytes in this tier."""

    def load(self, held: Tensor, device: torch.device) -> Tensor:
        """Return the tensor on `device`."""


class DeviceTier:
    """The device itself: a reference."""

    def save(self, tensor: Tensor) -> Tensor:
        return tensor

    def load(self, held: Tensor, device: torch.device) -> Tensor:
        return held


class HostTier:
    """Host memory: a copy, pinned when the tensor comes from a CUDA device.

    A tensor that lives on the CPU is copied once, when saved, and handed back as it is.
    """

    def save(self, tensor: Tensor) -> Tensor:
        held = torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda"
        )
        return held.copy_(tensor)

    def load(self, held: Tensor, device: torch.device) -> Tensor:
        return held.to(device)


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
    """A stored tensor. Dropping the last reference to its ticket frees it."""

    tier: Tier
    device: torch.device
    held: Tensor
    version: int


@dataclass(slots=True)
class TensorStore:
    """Stores tensors in tiers.

    `counts` are kept per tier; on a machine whose device is the CPU, DEVICE and HOST are the same
    memory but are counted apart, as they would be beside a GPU.
    """

    tiers: dict[Tier, TierStore] = field(
        default_factory=lambda: {Tier.DEVICE: DeviceTier(), Tier.HOST: HostTier()}
    )
    counts: dict[Tier, TierCount] = field(
        default_factory=lambda: {tier: TierCount() for tier in Tier}
    )

    def put(self, tensor: Tensor, tier: Tier) -> Ticket:
        """Store `tensor` (any shape, dtype and strides; detached) in `tier`."""
        held = self.tiers[tier].save(tensor.detach())
        ticket = Ticket(tier, tensor.device, held, held._version)
        count, size_bytes = self.counts[tier], nbytes(tensor)
        count.add(size_bytes)
        weakref.finalize(ticket, count.remove, size_bytes)
        return ticket

    def get(self, ticket: Ticket) -> Tensor:
        """The stored tensor, on the device that it came from.

        Raises:
            MemoError: when a tensor that was kept by reference has been changed in place since.
        """
        if ticket.held._version != ticket.version:
            raise MemoError(
                "a tensor that backward needs was modified by an inplace operation after the "
                "layer's forward; modify a clone instead"
            )
        return self.tiers[ticket.tier].load(ticket.held, ticket.device)

    def reset_peaks(self) -> None:
        """Let peaks start again from what is held now, and moved bytes from 0."""
        for count in self.counts.values():
            count.peak_bytes, count.moved_bytes = count.held_bytes, 0
