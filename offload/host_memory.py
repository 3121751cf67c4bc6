"""Host memory of exactly the size that was asked for, on large pages.

Scope: one allocation. torch's own pinned allocator rounds up to powers of two, and the C library's
memory lies on pages of 4 KiB; on pages of 2 MiB a copy, and a disk, are up to twice as fast.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

LARGE_PAGE_BYTES = 2 << 20


def host_memory(size_bytes: int) -> Tensor:
    """Private anonymous memory as uint8 [size_bytes]; it holds zeros, and costs nothing until it
    is written.

    Raises:
        MemoryError: when the system refuses it.
    """
    # Python's default, shared anonymous memory, stays on small pages.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, size_bytes, flags=private)
    except OSError as error:
        raise MemoryError(f"no {size_bytes:,} bytes of host memory: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE") and size_bytes >= LARGE_PAGE_BYTES:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
