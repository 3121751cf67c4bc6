"""Pieces of a call: what of it one run of a kernel takes, and how what pieces give is put together.

Scope: views of q, k, v, o and their gradients, and the sums of gradients. Which pieces there are is
`core.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memo.attention.blocks import Block
from memo.attention.contracts import AttentionOptions, BlockInputs
from memo.attention.heads import HeadPart
from memo.attention.masks import Range
from offload import CoreCall


@dataclass(frozen=True, slots=True)
class Piece:
    """One block of one part of the heads."""

    block: Block
    part: HeadPart

    def inputs_of(self, call: CoreCall) -> BlockInputs:
        """What its kernel is given."""
        q, k, v = call.heads
        return BlockInputs(
            q=self.queries_of(q, heads_dim=1),
            k=self.keys_of(k),
            v=self.keys_of(v),
            sinks=call.extras[0] if call.extras else None,
            block=self.block,
            options=options_of(call),
            spread=self.part.spread,
        )

    def queries_of(self, tensor: Tensor, *, heads_dim: int) -> Tensor:
        """Its view of q, o or their gradients; tokens are the other one of dims 1 and 2."""
        return self._view(tensor, heads_dim, self.part.q, self.block.q)

    def keys_of(self, tensor: Tensor) -> Tensor:
        """Its view of k, v ([batch, kv_heads, tokens, head_dim]) or their gradients."""
        return self._view(tensor, 1, self.part.kv, self.block.k)

    def _view(self, tensor: Tensor, heads_dim: int, heads: Range, tokens: Range) -> Tensor:
        view = tensor
        for dim, (start, stop) in (
            (0, self.block.rows),
            (heads_dim, heads),
            (3 - heads_dim, tokens),
        ):
            view = view.narrow(dim, start, stop - start)
        return view


class Sums:
    """Gradients of whole q, k, v and of the sinks, from those of pieces.

    With `over` they are written over q, k and v: pieces that share no query and no key, and leave
    none out, need each part of them once.
    """

    def __init__(self, call: CoreCall, *, over: bool) -> None:
        self._call, self._over = call, over
        self._heads: tuple[Tensor, ...] | None = None
        self._sinks: Tensor | None = None

    def add(self, piece: Piece, heads: tuple[Tensor, ...], sinks: Tensor | None) -> None:
        if sinks is not None:
            self._sinks = sinks if self._sinks is None else self._sinks + sinks
        wholes = self._call.heads
        if self._over:
            self._heads = wholes
        if self._heads is None and all(
            a.shape == b.shape for a, b in zip(heads, wholes, strict=True)
        ):
            self._heads = heads
            return
        self._heads = self._heads or tuple(torch.zeros_like(whole) for whole in wholes)
        q, k, v = self._heads
        views = (piece.queries_of(q, heads_dim=1), piece.keys_of(k), piece.keys_of(v))
        for view, part in zip(views, heads, strict=True):
            if self._over:
                view.copy_(part)
            else:
                view.add_(part)

    def value(self) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        heads = self._heads or tuple(torch.zeros_like(whole) for whole in self._call.heads)
        return heads, (self._sinks,) * len(self._call.extras)


def options_of(call: CoreCall) -> AttentionOptions:
    """The options of a call of attention's."""
    assert isinstance(call.options, AttentionOptions)
    return call.options


def are_disjoint(pieces: Sequence[Piece], call: CoreCall) -> bool:
    """Whether every query and key of a row are in one block, and so in one piece per head."""
    mask, q = options_of(call).mask, call.heads[0]
    blocks = {piece.block for piece in pieces}
    everything = (0, mask.tokens)
    whole = all(block.q == everything and block.k == everything for block in blocks)
    return whole and sum(stop - first for first, stop in (b.rows for b in blocks)) == q.shape[0]
