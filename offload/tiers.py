"""What a tier is to the store, the one that is the device itself, and a tier's count of bytes.

Scope: small parts. The other tiers are the transfer engine (`transfers.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from offload.contracts import INPLACE, MemoError, Tier, Turn


class TierStore(Protocol):
    """One tier: what is saved there is loaded from there, any number of times, until it is
    dropped.
    """

    def save(self, tensors: Sequence[Tensor], turn: Turn, tier: Tier) -> Any:
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

    def save(self, tensors: Sequence[Tensor], turn: Turn, tier: Tier) -> _Kept:
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
