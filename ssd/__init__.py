"""The disk as a tier: extents of a spool on one or several disks, written and read behind the
caller's back.

Read `contracts.py` first, then `opening.py`, `spool.py` and `request_queue.py`; the engines are
`uring.py` and `threads.py`. This package knows bytes, extents and files, and nothing of tensors,
models or training. `offload` is its only caller in training.
"""

from ssd.buffers import LARGE_PAGE_BYTES, aligned_buffer
from ssd.contracts import EngineKind, Extent, Operation, SpillError, SpillWarning, Verify
from ssd.opening import open_spool
from ssd.requests import Request
from ssd.spool import BLOCK_BYTES, Spool

__all__ = [
    "BLOCK_BYTES",
    "LARGE_PAGE_BYTES",
    "EngineKind",
    "Extent",
    "Operation",
    "Request",
    "SpillError",
    "SpillWarning",
    "Spool",
    "Verify",
    "aligned_buffer",
    "open_spool",
]
