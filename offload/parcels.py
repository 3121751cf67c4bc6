"""Tensors that are moved together, as one run of bytes.

Scope: what a parcel is, how tensors lie in it, and cutting them out of it again. Strides are kept:
kernels give other bits on other strides. What becomes of parcels is `transfers.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from offload.contracts import Tier, Turn, nbytes
from offload.disk import DiskCopy, DiskTransfer
from offload.host_pool import Extent, aligned
from offload.streams import Event, Stream


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor in a parcel."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    start: int
    size_bytes: int

    def cut(self, parcel: Tensor) -> Tensor:
        """This tensor, as a view of the parcel's bytes."""
        typed = parcel.narrow(0, self.start, self.size_bytes).view(self.dtype)
        return typed.as_strided(self.shape, self.stride, typed.storage_offset())


class State(Enum):
    """What becomes of a parcel; `transfers.py` tells. STORED: not on the device."""

    WRITING = auto()
    STORED = auto()
    LANDING = auto()
    GONE = auto()


@dataclass(slots=True, eq=False)
class Parcel:
    """Tensors that are moved together. `sources` are there while WRITING, `landing` while
    LANDING; `extent`, `copy` and `fetch` are `host_space.py`'s: where the bytes are on the host,
    their copy on the disk, and the read that brings them back to the extent.
    """

    group: int
    turn: Turn
    tier: Tier
    items: list[Item]
    extent: Extent | None
    written: Event
    sources: tuple[Tensor, ...]
    home: Stream
    size_bytes: int = 0
    copy: DiskCopy | None = None
    fetch: DiskTransfer | None = None
    versions: tuple[int, ...] = ()
    state: State = State.WRITING
    landing: Tensor | None = None
    landed: Event | None = None
    is_spoiled: bool = False
    has_failed: bool = False

    def __post_init__(self) -> None:
        self.versions = tuple(source._version for source in self.sources)
        assert self.extent is not None
        self.size_bytes = self.extent.size_bytes

    @property
    def is_here(self) -> bool:
        """Whether its bytes are on the host."""
        return self.extent is not None and self.fetch is None

    @property
    def is_clean(self) -> bool:
        """Whether its bytes on the host are on the disk, too."""
        is_free = self.fetch is None or self.fetch.is_done()
        return is_free and self.copy is not None and self.copy.is_whole

    def check_sources(self) -> None:
        """See whether they are as they were; a change in place may have come before the copy."""
        pairs = zip(self.sources, self.versions, strict=False)  # no sources: they were let go
        self.is_spoiled |= any(source._version != version for source, version in pairs)


def pack(tensors: Sequence[Tensor]) -> list[Item]:
    """Where each of `tensors` (dense) lies, one after the other."""
    items, start = [], 0
    for tensor in tensors:
        items.append(Item(tensor.shape, tensor.stride(), tensor.dtype, start, nbytes(tensor)))
        start = aligned(start + nbytes(tensor))
    return items


def dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it if its elements do not fill a stretch of memory once each."""
    like = torch.empty_like(tensor, device="meta")  # keeps the strides of what is dense
    return tensor if like.stride() == tensor.stride() else tensor.contiguous()


def bytes_of(tensor: Tensor) -> Tensor:
    """A dense tensor's memory as uint8 [bytes]."""
    start = tensor.storage_offset() * tensor.element_size()
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), int(start), (nbytes(tensor),), (1,))
