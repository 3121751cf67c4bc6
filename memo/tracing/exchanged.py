"""Attention of one rank among several that share a sequence: heads for tokens, with nobody there.

Scope: what a rank allocates around `core` under Ulysses' exchange (arXiv 2309.14509, section 3.1):
buffers to send and to receive for q, k and v, tile by tile, and for o, in both directions. Nothing
is sent. What of it backward finds in the store is `stored`'s to say; the rest is exchanged again.
Who has which heads and tokens, and what runs inside, is `places.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from memo.attention.contracts import AttentionOptions
from memo.attention.masks import Row
from memo.attention.pieces import options_of
from memo.parallel.core import ParallelState
from memo.parallel.tiled import without_tokens
from memo.tracing.places import Pieces, Place
from offload import Core, CoreCall, CoreEnd, TensorStore, Tier, Tile, Turn
from offload.contracts import CallJoiner
from offload.forward import JoinedCall
from offload.store import Ticket
from planner.contracts import Stored


@dataclass(frozen=True, slots=True)
class Layout:
    """The traced rank's place for calls of so many heads, and what it runs there."""

    place: Place
    inner: Core

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to exchange heads with."""
        return self.place.degree == 1


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Options of a call whose q, k and v were exchanged: those of its tiles, and `own`, q, k and v
    of the rank's own tokens, of which it has none here ([batch, heads, 0, head_dim]).
    """

    options: AttentionOptions
    layout: Layout
    own: tuple[Tensor, ...]


@dataclass(slots=True)
class ExchangedCore:
    """A `Core` that is called for a rank's tokens, and runs `core` for its row's tokens and the
    rank's share of the heads: that of the rank with the most. With fewer heads than `ranks`, k and
    v are passed round a ring inside. `is_cuda`: whose kernels are on it; `pieces`: which of theirs
    are run. `on_held` is told of every tensor that is stored for the core's backward, before it is.
    Calls are those of `ExchangedCalls`.
    """

    core: Core
    ranks: int
    store: TensorStore
    stored: Stored
    is_cuda: bool
    on_held: Callable[[Tensor], None]
    pieces: Pieces = iter
    _layouts: dict[tuple[int, int, int], Layout] = field(default_factory=dict, init=False)

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, ParallelState | None]:
        layout = self.layout_of(call)
        inner = self._inner(call, call.heads)
        o, state = layout.inner.forward(inner, tier)
        if layout.is_alone:
            return o, None if state is None else ParallelState(state, None)
        held = None if tier is None else self._keep(o, inner.heads, tier)
        del inner
        sent = o.contiguous()
        del o
        return _local_o(sent, call), None if state is None else ParallelState(state, held)

    def layout_of(self, call: CoreCall) -> Layout:
        """That of calls with as many heads."""
        if isinstance(call.options, Exchanged):
            return call.options.layout
        q, k, _ = call.heads
        key = q.shape[1], k.shape[1], options_of(call).mask.tokens
        if key not in self._layouts:
            place = Place.of(self.ranks, q.shape[1], k.shape[1])
            inner = place.core(self.core, self.store, key[2], self.pieces, is_cuda=self.is_cuda)
            self._layouts[key] = Layout(place, inner)
        return self._layouts[key]

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
        layout, state = self.layout_of(call), end.state
        end.state = state.inner
        if layout.is_alone:
            return layout.inner.backward(self._inner(call, call.heads), end)
        held = () if state.held is None else self.store.get(state.held)
        del state
        own_tokens = end.grad_o.shape[1]
        heads = tuple(held[1:]) or call.heads
        o = held[0] if held else _share_of_o(end.o, layout)
        grad_o = _share_of_o(end.grad_o, layout)
        del end.grad_o, held
        inner = self._inner(call, heads)
        inner_end = CoreEnd(o=o, grad_o=grad_o, state=end.state)
        del o, grad_o, heads
        grads, extras = layout.inner.backward(inner, inner_end)
        del inner, inner_end
        sent = [grad.contiguous() for grad in grads]
        del grads
        own = _own(call)
        shapes = [(*head.shape[:2], own_tokens, head.shape[3]) for head in own]
        local = tuple(head.new_empty(shape) for head, shape in zip(own, shapes, strict=True))
        del sent
        return local, tuple(
            None if grad is None else extra.new_empty(extra.shape)
            for grad, extra in zip(extras, call.extras, strict=True)
        )

    def _inner(self, call: CoreCall, heads: tuple[Tensor, ...]) -> CoreCall:
        found = call.options
        options = found.options if isinstance(found, Exchanged) else options_of(call)
        tokens = self.ranks * options.mask.tokens
        mask = replace(options.mask, tokens=tokens, rows=(Row((0, tokens), (0,)),))
        return CoreCall(
            heads=heads,
            extras=tuple(extra[: heads[0].shape[1]] for extra in call.extras),
            options=replace(options, mask=mask),
            is_own=call.is_own or isinstance(found, Exchanged),
        )


def _own(call: CoreCall) -> tuple[Tensor, ...]:
    """q, k and v as the rank has them for its own tokens, or of none of them."""
    return call.options.own if isinstance(call.options, Exchanged) else call.heads


def _share_of_o(o: Tensor, layout: Layout) -> Tensor:
    sent, place = o.clone(), layout.place
    batch, tokens, _, size = sent.shape
    return sent.new_empty((batch, tokens * place.degree, place.heads[0], size))


def _local_o(o: Tensor, call: CoreCall) -> Tensor:
    q = _own(call)[0]
    options = call.options.options if isinstance(call.options, Exchanged) else options_of(call)
    return o.new_empty((q.shape[0], options.mask.tokens, q.shape[1], o.shape[-1]))


@dataclass(slots=True)
class ExchangedCalls:
    """What joins the tiles of one traced layer call, as `memo.parallel.tiled.TiledExchanges`: for
    backward nothing but their shapes, where q, k and v lie in the store.
    """

    core: ExchangedCore
    tokens: int
    passes: int = 0

    def __call__(self) -> CallJoiner:
        self.passes += 1
        only_shapes = self.passes > 1 and self.core.stored is Stored.AFTER
        return TracedExchange(self.core, self.tokens, only_shapes)


class TracedExchange:
    """Tiles' calls, exchanged as they come, one on its way while the next is made; of `tokens`
    together. With `only_shapes` nothing is exchanged, and the call's heads have no tokens.
    """

    def __init__(self, core: ExchangedCore, tokens: int, only_shapes: bool) -> None:
        self._core, self._tokens, self._only_shapes = core, tokens, only_shapes
        self._alone = JoinedCall(tokens)
        self._first: CoreCall | None = None
        self._layout: Layout | None = None
        self._whole: list[Tensor] = []
        self._arrivals: list[tuple[list[Tensor], list[Tensor]]] = []

    def write(self, tile: Tile, call: CoreCall) -> None:
        self._layout = layout = self._core.layout_of(call)
        if layout.is_alone:
            self._alone.write(tile, call)
            return
        if self._first is None:
            self._first = without_tokens(call)
        if self._only_shapes:
            return
        sent = [head.detach().clone() for head in call.heads]
        self._arrivals.append((sent, _received(sent, tile.tokens, layout.place)))
        if not self._whole:
            # A tile earlier than in training: the second tile, which stands for others, finds it.
            self._whole = _received(sent, self._tokens, layout.place)
        if len(self._arrivals) > 1:
            self._take()

    def value(self) -> CoreCall:
        assert self._layout is not None, "no tile was written"
        if self._layout.is_alone:
            return self._alone.value()
        assert self._first is not None
        while self._arrivals:
            self._take()
        own, options = self._first.heads, options_of(self._first)
        heads = own if self._only_shapes else tuple(self._whole)
        return CoreCall(
            heads=heads,
            extras=self._first.extras,
            options=Exchanged(options, self._layout, own),
        )

    def _take(self) -> None:
        _, received = self._arrivals.pop(0)
        for whole, part in zip(self._whole, received, strict=True):
            whole[:, :, : part.shape[2]].copy_(part)


def _received(like: Sequence[Tensor], tokens: int, place: Place) -> list[Tensor]:
    """The rank's heads of q, k and v ([batch, heads, tokens, head_dim], with tokens before heads in
    memory), where each of its row sends `tokens`.
    """
    return [
        head.new_empty((len(head), tokens * place.degree, count, head.shape[3])).transpose(1, 2)
        for head, count in zip(like, place.heads, strict=True)
    ]
