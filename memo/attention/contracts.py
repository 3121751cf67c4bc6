"""What attention's parts say to each other: the options of a call, and the protocol of a kernel.

Scope: plain data and one protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from memo.attention.blocks import Block
from memo.attention.masks import RangeMask
from offload import CoreState, Tier


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionOptions:
    """Everything about an attention call that is no tensor. `scale` multiplies q k^T; `softcap`
    bounds it: cap * tanh(score / cap).
    """

    mask: RangeMask
    scale: float
    dropout: float = 0.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class HeadGradients:
    """Gradients of one block's q, k, v, and of the sinks if there are any."""

    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """q [batch, heads, queries, head_dim], k and v [batch, kv_heads, keys, head_dim] of one
    block; sinks [heads].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None
    block: Block
    options: AttentionOptions
    spread: bool = False

    @property
    def groups(self) -> int:
        """Query heads that share one kv head."""
        return self.q.shape[1] // self.k.shape[1]


class Kernel(Protocol):
    """An attention kernel for one block. Its backward gets q, k, v and o again; its forward
    never runs twice.
    """

    @property
    def name(self) -> str:
        """What a report calls it."""

    def forward(self, inputs: BlockInputs, tier: Tier | None) -> tuple[Tensor, CoreState | None]:
        """`o` as [batch, heads, queries, v_head_dim], and the state for backward, held in `tier`.

        None for a tier: no backward will come.
        """

    def backward(
        self, grad_o: Tensor, inputs: BlockInputs, o: Tensor, state: CoreState
    ) -> HeadGradients:
        """Gradients from that of `o` ([batch, heads, queries, v_head_dim])."""
