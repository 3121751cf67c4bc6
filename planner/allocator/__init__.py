"""PyTorch's CUDA caching allocator, simulated: what it would reserve for a sequence of allocations.

Read `contracts.py` first, then `replay.py`, `allocator.py` and `sizes.py`; the rules are those of
`c10/cuda/CUDACachingAllocator.cpp` and `c10/core/AllocatorConfig.cpp` of torch 2.13. The context,
cuBLAS's workspaces and NCCL's buffers come on top of what is simulated. Private pools (CUDA graphs,
`MemPool`) and sharing between processes are left out.
"""

from planner.allocator.allocator import CachingAllocator
from planner.allocator.config import AllocatorConfig
from planner.allocator.contracts import (
    BlockView,
    EmptyCache,
    Event,
    Free,
    Gauge,
    Malloc,
    OutOfMemory,
    RecordStream,
    Segment,
    StreamDone,
    Usage,
)
from planner.allocator.lifetimes import Lifetime, events_of
from planner.allocator.replay import Replay, replay

__all__ = [
    "AllocatorConfig",
    "BlockView",
    "CachingAllocator",
    "EmptyCache",
    "Event",
    "Free",
    "Gauge",
    "Lifetime",
    "Malloc",
    "OutOfMemory",
    "RecordStream",
    "Replay",
    "Segment",
    "StreamDone",
    "Usage",
    "events_of",
    "replay",
]
