"""Random numbers of ranks that share a sequence, whose generators are in one state.

Scope: attention's dropout. Token-wise dropout has seeds of its own (`offload.Replay`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_numbers(rank: int) -> Iterator[None]:
    """Inside, the CPU's generator is the rank's own: what it draws for its heads, no other rank
    draws for others. Outside, all ranks' go on by one number, however often a rank draws: data
    loaders that shuffle by it stay together.
    """
    seed = int(torch.randint(2**62, ()))
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed + rank)
    try:
        yield
    finally:
        torch.set_rng_state(before)
