"""Attention of one rank among several that share a sequence: heads for tokens, with nobody there.

Scope: the runtime's own core over ranks (`memo.parallel.core`) on a wire without others, so that
what a rank allocates and copies around `core` under Ulysses' exchange (arXiv 2309.14509, section
3.1) is what it does in training. Here stands what a trace changes: which rank it is
(`places.py`), that a recorder is told what is stored, and that few of many tiles are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from torch import Tensor

from memo.attention.masks import Row
from memo.attention.pieces import options_of
from memo.parallel.contracts import Stored as StoredHere
from memo.parallel.contracts import TokenShares
from memo.parallel.core import ParallelCore
from memo.parallel.exchange import Arrival, Fused, HeadsAxis
from memo.parallel.layout import Exchanged, Layout, swapped
from memo.parallel.tiled import StoredExchange, without_tokens
from memo.parallel.view import SequenceView
from memo.tracing.places import Nobody, Pieces, Place
from offload import Core, CoreCall, TensorStore, Tier, Tile
from offload.contracts import CallJoiner
from offload.forward import JoinedCall
from offload.store import Ticket
from planner.contracts import Stored


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangedCore(ParallelCore):
    """The core of the rank with the most to do. `is_cuda`: whose kernels are on its ring;
    `pieces`: which of the ring's are run. `on_held` is told of every tensor that is stored for
    the core's backward, before it is.
    """

    is_cuda: bool
    pieces: Pieces
    on_held: Callable[[Tensor], None]

    @classmethod
    def of(
        cls,
        core: Core,
        store: TensorStore,
        shares: TokenShares,
        stored: Stored,
        *,
        is_cuda: bool,
        pieces: Pieces,
        on_held: Callable[[Tensor], None],
    ) -> ExchangedCore:
        """For ranks with these `shares` of sequences, none of them padding; the first has as many
        tokens as any.
        """
        wire = Nobody.of(0, shares.ranks)
        view = SequenceView(wire.group, shares, (Row((0, shares.total_tokens), (0,)),))
        return cls(
            core=core,
            store=store,
            wire=wire,
            view=view,
            stored=StoredHere(stored.value),
            is_cuda=is_cuda,
            pieces=pieces,
            on_held=on_held,
        )

    def _make_layout(self, heads: int, kv_heads: int) -> Layout:
        place = Place.of(self.view.group.size, heads, kv_heads)
        shares = place.shares_of(self.view.shares)
        tokens = tuple(shares.tokens[member] for member in place.members)
        axis = HeadsAxis(self.wire, place.members, tokens, place.place)
        inner = place.core(self.core, self.store, shares, self.pieces, is_cuda=self.is_cuda)
        return Layout(axis, place.shares, inner)

    def _keep(self, fused: Fused, o: Tensor, tier: Tier) -> Ticket | None:
        if self.stored is not StoredHere.BEFORE:
            self.on_held(o)
        if self.stored is StoredHere.AFTER:
            self.on_held(fused.buffer)
        return ParallelCore._keep(self, fused, o, tier)

    def _numbers(self) -> AbstractContextManager[None]:
        return nullcontext()  # fake tensors have no seeds


@dataclass(slots=True)
class ExchangedCalls:
    """What joins the tiles of one traced layer call, as `memo.parallel.tiled.TiledExchanges`;
    `is_sampled`: few of many.
    """

    core: ExchangedCore
    is_sampled: bool
    passes: int = 0

    def __call__(self) -> CallJoiner:
        self.passes += 1
        if self.passes > 1 and self.core.stored is StoredHere.AFTER:
            return StoredExchange(self.core)
        return TracedExchange(self.core, self.is_sampled)


class TracedExchange:
    """Tiles' calls, exchanged as they come, one on its way while the next is made: those that a
    trace runs.
    """

    def __init__(self, core: ExchangedCore, is_sampled: bool) -> None:
        self._core, self._is_sampled = core, is_sampled
        self._alone = JoinedCall(core.view.shares.tokens[0])
        self._first: CoreCall | None = None
        self._layout: Layout | None = None
        self._whole: Fused | None = None
        self._arrivals: list[Arrival] = []

    def write(self, tile: Tile, call: CoreCall) -> None:
        """Exchange a tile's q, k and v."""
        self._layout = layout = self._core.layout_of(call)
        if layout.is_alone:
            self._alone.write(tile, call)
            return
        if self._first is None:
            self._first = without_tokens(call)
        parts = swapped([head.detach() for head in call.heads])
        tokens = [max(0, min(tile.tokens, own - tile.start)) for own in layout.axis.tokens]
        arrival = layout.axis.to_heads(parts, layout.call_owners, tokens)
        self._arrivals.append(arrival)
        if self._is_sampled and self._whole is None:
            # A tile earlier than in training: the second tile, which stands for others, finds it.
            self._whole = self._whole_like(arrival.wait())
        if len(self._arrivals) > 1:
            self._take()

    def value(self) -> CoreCall:
        """The call for the core, its heads in its options."""
        assert self._layout is not None, "no tile was written"
        if self._layout.is_alone:
            return self._alone.value()
        assert self._first is not None
        while self._arrivals:
            self._take()
        assert self._whole is not None
        options = Exchanged(options_of(self._first), self._layout, self._whole)
        self._whole = None
        return replace(self._first, options=options)

    def _take(self) -> None:
        arrived = self._arrivals.pop(0).wait()
        if self._whole is None:
            self._whole = self._whole_like(arrived)
        self._whole.buffer[: len(arrived.buffer)].copy_(arrived.buffer)

    def _whole_like(self, arrived: Fused) -> Fused:
        assert self._layout is not None
        tokens = sum(self._layout.axis.tokens)
        buffer = arrived.buffer.new_empty((tokens, *arrived.buffer.shape[1:]))
        return Fused(buffer, arrived.shapes)
