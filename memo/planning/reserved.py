"""Whether PyTorch's caching allocator would have room for a planned step beside the model states.

Scope: one note, for plans whose layout fits. The allocator is `planner.allocator`'s simulation.
"""

from __future__ import annotations

from planner.allocator import AllocatorConfig, Lifetime, events_of, replay
from planner.layout import Problem
from planner.sizes import format_bytes

SETTING = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
"""As PyTorch's own message proposes when memory runs out (c10/cuda/CUDACachingAllocator.cpp)."""


def reserved_note(
    problem: Problem, reserved_bytes: int, *, resident_bytes: int, device_bytes: int
) -> str | None:
    """A sentence when what is resident and `reserved_bytes`, with the allocator's default settings,
    are more than the device has; None when they are not. `problem`: every tensor beside what is
    resident.
    """
    total_bytes = resident_bytes + reserved_bytes
    if total_bytes <= device_bytes:
        return None
    expandable_bytes = resident_bytes + reserved_with(
        problem, AllocatorConfig(expandable_segments=True)
    )
    told = (
        f"PyTorch's own allocator would reserve {format_bytes(total_bytes)} with its default "
        f"settings, model states among them, more than the {format_bytes(device_bytes)} there are, "
        f"and {format_bytes(expandable_bytes)} with {SETTING} (the context, cuBLAS's workspaces "
        "and NCCL's buffers come on top): "
    )
    if expandable_bytes <= device_bytes:
        return told + "set that"
    over_bytes = min(total_bytes, expandable_bytes) - device_bytes
    return told + f"plan for {format_bytes(over_bytes)} less of GPU memory, or more, as well"


def reserved_with(problem: Problem, config: AllocatorConfig) -> int:
    """Bytes that the allocator reserves at most when the buffers are allocated as they come, where
    it never has to give any back.
    """
    lives = [
        Lifetime(number, buffer.size_bytes, buffer.lower, buffer.upper)
        for number, buffer in enumerate(problem.buffers)
    ]
    return replay(events_of(lives), config).usage.reserved_bytes.peak
