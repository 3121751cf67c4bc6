"""Attention of one rank among several that share a sequence: heads for tokens, with nobody there.

Scope: what a rank allocates around `core` under Ulysses' exchange (arXiv 2309.14509, section 3.1):
a buffer to send and one to receive for q, k, v and for o, in both directions. Nothing is sent. What
is received is not held: backward exchanges q, k, v and o again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from memo.attention.masks import Row
from memo.attention.pieces import options_of
from offload import Core, CoreCall, CoreEnd, CoreState, Tier


@dataclass(slots=True)
class ExchangedCore:
    """A `Core` that is called for a rank's tokens, and runs `core` for all tokens and the rank's
    share of the heads: that of the rank with the most.
    """

    core: Core
    ranks: int

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, CoreState | None]:
        o, state = self.core.forward(self._inner(call), tier)
        sent = o.contiguous()
        del o
        return self._local_o(sent, call), state

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        inner = self._inner(call)
        o, grad_o = self._share_of_o(end.o), self._share_of_o(end.grad_o)
        state = end.state
        del end.grad_o
        inner_end = CoreEnd(o=o, grad_o=grad_o, state=state)
        del o, grad_o, state
        heads, extras = self.core.backward(inner, inner_end)
        del inner, inner_end
        sent = [head.contiguous() for head in heads]
        del heads
        local = tuple(head.new_empty(head.shape) for head in call.heads)
        del sent
        return local, tuple(
            None if grad is None else extra.new_empty(extra.shape)
            for grad, extra in zip(extras, call.extras, strict=True)
        )

    def _inner(self, call: CoreCall) -> CoreCall:
        sent = [head.clone() for head in call.heads]
        heads = tuple(self._received(head) for head in sent)
        extras = tuple(extra[: heads[0].shape[1]] for extra in call.extras)
        options = options_of(call)
        tokens = options.mask.tokens * self.ranks
        mask = replace(options.mask, tokens=tokens, rows=(Row((0, tokens), (0,)),))
        return CoreCall(
            heads=heads, extras=extras, options=replace(options, mask=mask), is_own=True
        )

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
