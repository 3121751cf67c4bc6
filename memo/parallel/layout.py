"""Where a rank stands for calls of so many heads, and calls that were exchanged before they came.

Scope: plain data, and the order of dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from memo.attention.contracts import AttentionOptions
from memo.parallel.contracts import HeadShares
from memo.parallel.exchange import Fused, HeadsAxis, Owners
from offload import Core, CoreCall


@dataclass(frozen=True, slots=True)
class Layout:
    """Who exchanges what with this rank, and the core that it runs inside."""

    axis: HeadsAxis
    shares: HeadShares
    inner: Core

    @property
    def call_owners(self) -> tuple[Owners, ...]:
        """Who computes which heads of q, k and v."""
        return self.shares.q, self.shares.kv, self.shares.kv

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to exchange heads with."""
        return len(self.axis.members) == 1

    def fused(self, call: CoreCall, buffer: Tensor) -> Fused:
        """What `buffer` holds: q, k and v of the rank's heads."""
        place, sizes = self.axis.place, [head.shape[3] for head in call.heads]
        ranges = [owners[place] for owners in self.call_owners]
        counts = [stop - start for start, stop in ranges]
        return Fused(buffer, tuple(zip(counts, sizes, strict=True)))

    def own(self, tensor: Tensor) -> Tensor:
        """A tensor of all query heads ([heads]), cut to the rank's."""
        return tensor[slice(*self.shares.q[self.axis.place])]


@dataclass(slots=True)
class Exchanged:
    """Options of a call that was exchanged tile by tile (`tiled.py`), and whose heads have no
    tokens: q, k and v of own heads and all tokens are `fused`, until they are taken. `options` are
    the tiles'.
    """

    options: AttentionOptions
    layout: Layout
    fused: Fused | None

    def take(self) -> Fused:
        """q, k and v, whose memory the caller alone holds from now on."""
        assert self.fused is not None, "they were taken"
        fused, self.fused = self.fused, None
        return fused


def swapped(tensors: Sequence[Tensor]) -> list[Tensor]:
    """[batch, heads, tokens, size] as [batch, tokens, heads, size], and back."""
    return [tensor.transpose(1, 2) for tensor in tensors]


def heads_of(fused: Fused) -> tuple[Tensor, ...]:
    """[batch, heads, tokens, size] of each."""
    return tuple(swapped(fused.views()))
