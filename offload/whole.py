"""A layer that cannot be cut: run whole, its saved tensors kept, stored in a tier, or rebuilt by a
second run.

Scope: placement of one layer call as a single tile, with torch's own checkpointing for RECOMPUTE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from offload.contracts import Placement
from offload.counts import LayerCount
from offload.recording import Recording
from offload.store import TensorStore

T = TypeVar("T")


def run_whole(
    forward: Callable[[Tensor], T],
    x: Tensor,
    *,
    placement: Placement,
    constants: Sequence[Tensor],
    store: TensorStore,
    count: LayerCount,
) -> T:
    """Call `forward(x)`; `constants` (parameters, buffers, arguments) are never stored."""
    count.calls += 1
    count.tiles[placement] += 1
    match placement:
        case Placement.KEEP:
            return forward(x)
        case Placement.RECOMPUTE:
            result: T = checkpoint(forward, x, use_reentrant=False)
            return result
        case Placement.HOST | Placement.SSD:
            assert placement.tier is not None
            recording = Recording(store, placement.tier, {}, constants)
            with recording.recording():
                result = forward(x)
            recording.seal(bundled=False)
            store.close_group()
            count.stored_bytes[placement.tier] += recording.nbytes
            return result
