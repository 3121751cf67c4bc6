"""Shapes of attention calls, and which kernel each was given.

Scope: plain data. Choosing stands in `core.py`, trying in `fastest.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from torch._subclasses.fake_tensor import FakeTensor

from memo.attention.blocks import blocks_of
from memo.attention.heads import HeadPart
from memo.attention.pieces import Piece, are_disjoint, options_of
from offload import CoreCall

Sight = Literal["causal", "full", "ranges"]

MAX_TOKENS = 8192
"""Work is quadratic by far at this length: what is faster here is faster on all longer rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a choice of kernel depends on.

    `sight`: "causal" or "full" where every row is one document without padding, which all kernels
    have a fast path for, "ranges" elsewhere; `tokens`: the power of two up to a row's length,
    at most `MAX_TOKENS`; `features`: what only some kernels can do.
    """

    device: str
    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    tokens: int
    sight: Sight
    features: tuple[str, ...] = ()

    @classmethod
    def of(cls, call: CoreCall) -> Shape:
        q, k, v = call.heads
        # What cannot be tried on fake tensors is no choice for real ones.
        fake = "fake " if isinstance(q, FakeTensor) else ""
        return cls(
            device=f"{fake}{q.device}",
            dtype=str(q.dtype).removeprefix("torch."),
            heads=q.shape[1],
            kv_heads=k.shape[1],
            head_dim=q.shape[3],
            v_head_dim=v.shape[3],
            tokens=min(MAX_TOKENS, 1 << q.shape[2].bit_length() >> 1),
            sight=_sight(call),
            features=_features(call),
        )

    def __str__(self) -> str:
        sizes = f"{self.heads}/{self.kv_heads} heads of {self.head_dim}, {self.tokens:,}+ tokens"
        return ", ".join((self.sight, *self.features, self.dtype, sizes, self.device))


@dataclass(frozen=True, slots=True)
class Choice:
    """The name of the chosen kernel; where several were tried, how long each took, and what those
    said that failed.
    """

    kernel: str
    times_s: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


def all_heads(call: CoreCall) -> HeadPart:
    """The part that leaves no head out."""
    q, k, _ = call.heads
    return HeadPart((0, q.shape[1]), (0, k.shape[1]))


def _sight(call: CoreCall) -> Sight:
    blocks = list(islice(blocks_of(options_of(call).mask, call.heads[0].shape[0]), 2))
    if len(blocks) == 1 and are_disjoint([Piece(blocks[0], all_heads(call))], call):
        if blocks[0].is_square:
            return "causal"
        if blocks[0].is_open:
            return "full"
    return "ranges"


def _features(call: CoreCall) -> tuple[str, ...]:
    options = options_of(call)
    asked = {
        "dropout": options.dropout > 0,
        "softcap": options.softcap is not None,
        "sinks": len(call.extras) > 0,
    }
    return tuple(name for name, value in asked.items() if value)
