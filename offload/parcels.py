"""Tensors that are moved together, as one run of bytes.

Scope: how tensors lie in a parcel, and cutting them out of it again. Strides are kept: kernels give
other bits on other strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offload.contracts import nbytes
from offload.host_pool import aligned


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
