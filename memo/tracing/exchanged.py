"""Attention of one rank among several that share a sequence: heads for tokens, with nobody there.

Scope: what a rank allocates around `core` under Ulysses' exchange (arXiv 2309.14509, section 3.1):
a buffer to send and one to receive for q, k, v and for o, in both directions. Nothing is sent. What
of it backward finds in the store is `stored`'s to say; the rest is exchanged again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from memo.attention.masks import Row
from memo.attention.pieces import options_of
from memo.parallel.core import ParallelState
from memo.parallel.tiled import without_tokens
from offload import Core, CoreCall, CoreEnd, TensorStore, Tier, Tile, Turn
from offload.contracts import CallJoiner
from offload.forward import JoinedCall
from offload.store import Ticket
from planner.contracts import Stored


@dataclass(slots=True)
class ExchangedCore:
    """A `Core` that is called for a rank's tokens, and runs `core` for all tokens and the rank's
    share of the heads: that of the rank with the most. `on_held` is told of every tensor that is
    stored for the core's backward, before it is.
    """

    core: Core
    ranks: int
    store: TensorStore
    stored: Stored
    on_held: Callable[[Tensor], None]

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, ParallelState | None]:
        inner = self._inner(call, self._exchanged(call.heads))
        o, state = self.core.forward(inner, tier)
        held = None if tier is None else self._keep(o, inner.heads, tier)
        del inner
        sent = o.contiguous()
        del o
        return self._local_o(sent, call), None if state is None else ParallelState(state, held)

    def _keep(self, o: Tensor, heads: Sequence[Tensor], tier: Tier) -> Ticket | None:
        match self.stored:
            case Stored.BEFORE:
                return None
            case Stored.OUTPUT:
                tensors = [o]
            case Stored.AFTER:
                tensors = [o, *heads]
        for tensor in tensors:
            self.on_held(tensor)
        return self.store.put(tensors, tier, Turn.CORE)

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        assert isinstance(end.state, ParallelState)
        state = end.state
        end.state = state.inner
        held = () if state.held is None else self.store.get(state.held)
        del state
        own_tokens = end.grad_o.shape[1]
        heads = tuple(held[1:]) or self._exchanged(call.heads)
        o = held[0] if held else self._share_of_o(end.o)
        grad_o = self._share_of_o(end.grad_o)
        del end.grad_o, held
        inner, inner_end = self._inner(call, heads), CoreEnd(o=o, grad_o=grad_o, state=end.state)
        del o, grad_o, heads
        grads, extras = self.core.backward(inner, inner_end)
        del inner, inner_end
        sent = [grad.contiguous() for grad in grads]
        del grads
        shapes = [(*head.shape[:2], own_tokens, head.shape[3]) for head in call.heads]
        local = tuple(head.new_empty(shape) for head, shape in zip(call.heads, shapes, strict=True))
        del sent
        return local, tuple(
            None if grad is None else extra.new_empty(extra.shape)
            for grad, extra in zip(extras, call.extras, strict=True)
        )

    def _inner(self, call: CoreCall, heads: tuple[Tensor, ...]) -> CoreCall:
        extras = tuple(extra[: heads[0].shape[1]] for extra in call.extras)
        options, tokens = options_of(call), heads[0].shape[2]
        mask = replace(options.mask, tokens=tokens, rows=(Row((0, tokens), (0,)),))
        return CoreCall(
            heads=heads, extras=extras, options=replace(options, mask=mask), is_own=True
        )

    def _exchanged(self, heads: Sequence[Tensor]) -> tuple[Tensor, ...]:
        sent = [head.clone() for head in heads]
        return tuple(self._received(head) for head in sent)

    def _received(self, head: Tensor) -> Tensor:
        """[batch, heads, tokens, head_dim], with tokens before heads in memory."""
        batch, heads, tokens, head_dim = head.shape
        shape = (batch, tokens * self.ranks, self._share(heads), head_dim)
        return head.new_empty(shape).transpose(1, 2)

    def _share_of_o(self, o: Tensor) -> Tensor:
        sent = o.clone()
        batch, tokens, heads, head_dim = sent.shape
        return sent.new_empty((batch, tokens * self.ranks, self._share(heads), head_dim))

    def _local_o(self, o: Tensor, call: CoreCall) -> Tensor:
        q = call.heads[0]
        return o.new_empty((q.shape[0], q.shape[2], q.shape[1], o.shape[-1]))

    def _share(self, heads: int) -> int:
        return -(-heads // self.ranks)


@dataclass(slots=True)
class ExchangedCalls:
    """What joins the tiles of one traced layer call, as `memo.parallel.tiled.TiledExchanges`: for
    backward nothing but their shapes, where q, k and v lie in the store.
    """

    tokens: int
    stored: Stored
    passes: int = 0

    def __call__(self) -> CallJoiner:
        self.passes += 1
        if self.passes > 1 and self.stored is Stored.AFTER:
            return ShapesOnly()
        return JoinedCall(self.tokens)


@dataclass(slots=True)
class ShapesOnly:
    """Tiles' calls, of which the first is kept, with heads of no tokens."""

    first: CoreCall | None = None

    def write(self, tile: Tile, call: CoreCall) -> None:
        if self.first is None:
            self.first = without_tokens(call)

    def value(self) -> CoreCall:
        assert self.first is not None, "no tile was written"
        return self.first
