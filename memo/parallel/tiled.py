"""The exchange tile by tile: what one tile's `pre` made travels while the next tile is projected.

Scope: `TiledExchange`, which takes the place of `offload.forward.JoinedCall`, and who makes it. The
bytes are those of one fused all-to-all, in as many messages as the rank with the most tokens has
tiles; neither q, k and v of own tokens nor the message that holds them all ever exist whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from memo.attention.core import without_autocast
from memo.attention.pieces import options_of
from memo.parallel.contracts import Stored
from memo.parallel.core import ParallelCore
from memo.parallel.exchange import Arrival, Fused
from memo.parallel.layout import Exchanged, Layout, swapped
from offload import CoreCall, Tile
from offload.contracts import CallJoiner
from offload.forward import JoinedCall


@dataclass(slots=True)
class TiledExchanges:
    """What joins the tiles of one layer call: called for its forward first, then for its backward.

    There q, k and v need no exchange when they were stored after the first one.
    """

    core: ParallelCore
    tile_tokens: int
    passes: int = 0

    def __call__(self) -> CallJoiner:
        self.passes += 1
        if self.passes > 1 and self.core.stored is Stored.AFTER:
            return StoredExchange(self.core)
        return TiledExchange(self.core, self.tile_tokens)


class StoredExchange:
    """Tiles' calls of which nothing is needed but what they ask for."""

    def __init__(self, core: ParallelCore) -> None:
        self._core = core
        self._alone = JoinedCall(core.view.shares.tokens[core.view.group.rank])
        self._first: CoreCall | None = None
        self._is_alone = False

    def write(self, tile: Tile, call: CoreCall) -> None:
        with without_autocast(call) as cast:
            self._is_alone = self._core.layout_of(cast).is_alone
            if self._is_alone:
                self._alone.write(tile, cast)
            elif self._first is None:
                self._first = without_tokens(cast)

    def value(self) -> CoreCall:
        """The call, with heads of no tokens; whole on a rank that exchanges nothing."""
        if self._is_alone:
            return self._alone.value()
        assert self._first is not None, "no tile was written"
        return self._first


class TiledExchange:
    """Tiles' calls of one rank, exchanged as they come and joined to one call for `core`.

    All ranks cut their tokens into tiles of `tile_tokens`, and write them in order; a rank whose
    tokens are done takes part in the others' exchanges, so `value` must be called on all.
    """

    def __init__(self, core: ParallelCore, tile_tokens: int) -> None:
        self._core, self._tile_tokens = core, tile_tokens
        tokens = core.view.shares.tokens
        self._rounds = -(-max(tokens) // tile_tokens)
        self._alone = JoinedCall(tokens[core.view.group.rank])
        self._first: CoreCall | None = None
        self._layout: Layout | None = None
        self._whole: Fused | None = None
        self._arrivals: list[Arrival] = []
        self._sent_rounds = self._arrived_rounds = 0

    def write(self, tile: Tile, call: CoreCall) -> None:
        """Begin to exchange a tile's q, k and v, and take what arrived of the tile before.

        Raises:
            ValueError: for a tile that is not the next.
        """
        with without_autocast(call) as cast:
            self._layout = layout = self._core.layout_of(cast)
            if layout.is_alone:
                self._alone.write(tile, cast)
                return
            if tile.index != self._sent_rounds or tile.start != tile.index * self._tile_tokens:
                raise ValueError(
                    f"tile {tile.index} at {tile.start}: takes tile {self._sent_rounds}, of "
                    f"{self._tile_tokens} tokens as all before the last"
                )
            if self._first is None:
                self._first = without_tokens(cast)
            self._send(layout, [head.detach() for head in cast.heads])

    def value(self) -> CoreCall:
        """The call for the core, its heads in its options. Every tile must have been written."""
        assert self._layout is not None, "no tile was written"
        if self._layout.is_alone:
            return self._alone.value()
        assert self._first is not None
        while self._sent_rounds < self._rounds:
            self._send(self._layout, list(self._first.heads))
        while self._arrivals:
            self._take()
        assert self._whole is not None
        options = Exchanged(options_of(self._first), self._layout, self._whole)
        self._whole = None
        return replace(self._first, options=options)

    def _send(self, layout: Layout, heads: list[Tensor]) -> None:
        tokens = [self._tokens_in(self._sent_rounds, of) for of in layout.axis.tokens]
        parts = swapped(heads)
        self._arrivals.append(layout.axis.to_heads(parts, layout.call_owners, tokens))
        self._sent_rounds += 1
        if len(self._arrivals) > 1:
            self._take()

    def _tokens_in(self, index: int, tokens: int) -> int:
        """Of so many tokens, those in the tile number `index`."""
        return max(0, min(self._tile_tokens, tokens - index * self._tile_tokens))

    def _take(self) -> None:
        """Put the oldest tile that is under way to its place."""
        assert self._layout is not None
        arrived, index = self._arrivals.pop(0).wait(), self._arrived_rounds
        members = self._layout.axis.tokens
        if self._whole is None:
            shape = (sum(members), *arrived.buffer.shape[1:])
            self._whole = Fused(arrived.buffer.new_empty(shape), arrived.shapes)
        counts = [self._tokens_in(index, tokens) for tokens in members]
        first = 0
        for tokens, part in zip(members, arrived.buffer.split(counts), strict=True):
            start = first + index * self._tile_tokens
            if len(part):
                self._whole.buffer[start : start + len(part)].copy_(part)
            first += tokens
        self._arrived_rounds += 1


def without_tokens(call: CoreCall) -> CoreCall:
    """What a rank whose tokens are done sends; memory of its own, or it would hold a tile's."""
    empty = [head.new_empty((*head.shape[:2], 0, head.shape[3])) for head in call.heads]
    return replace(call, heads=tuple(empty))
