"""Host memory of exactly the size that was asked for, on large pages, as a tensor.

Scope: one allocation. torch's own pinned allocator rounds up to powers of two, and the C library's
memory lies on pages of 4 KiB; on pages of 2 MiB a copy, and a disk, are up to twice as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssd import LARGE_PAGE_BYTES, aligned_buffer

__all__ = ["LARGE_PAGE_BYTES", "host_memory"]


def host_memory(size_bytes: int) -> Tensor:
    """Private anonymous memory as uint8 [size_bytes]; it holds zeros, and costs nothing until it
    is written.

    Raises:
        MemoryError: when the system refuses it.
    """
    return torch.frombuffer(aligned_buffer(size_bytes), dtype=torch.uint8)
