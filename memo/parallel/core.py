"""Attention over ranks: the exchange before and after a core that runs in one process.

Scope: `ParallelCore`, the runtime's `Core` of one model call under sequence parallelism. What a
rank does in layers with as many heads stands in `layout.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from memo.attention.core import without_autocast
from memo.attention.pieces import options_of
from memo.parallel.contracts import Axes, Stored
from memo.parallel.exchange import Fused, HeadsAxis, Owners
from memo.parallel.layout import Exchanged, Layout, heads_of, swapped
from memo.parallel.numbers import own_numbers
from memo.parallel.ring import RingAxis
from memo.parallel.ring_core import RingCore
from memo.parallel.runs import RunsCore
from memo.parallel.shares import heads_degree, runs_of, share_axes, share_heads
from memo.parallel.view import SequenceView
from memo.parallel.wire import Wire
from offload import Core, CoreCall, CoreEnd, CoreState, TensorStore, Tier, Turn
from offload.store import Ticket


@dataclass(frozen=True, slots=True)
class ParallelState:
    """The state of the core inside, and what lies in the store after the exchange."""

    inner: CoreState
    held: Ticket | None

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes + (0 if self.held is None else self.held.size_bytes)


@dataclass(frozen=True, slots=True)
class ParallelCore:
    """`core` over the ranks of `view.group`; made once per model call, and kept by its backward.

    A call's q, k, v ([batch, heads, own tokens, head_dim]) and options are those of a rank's own
    tokens. All ranks make the same calls in the same order. `heads_degree` ranks exchange heads for
    tokens (None: as many as there are heads for), the rest passes k and v round a ring. Gradients
    of extras are a rank's share: their sum over ranks is the gradient.
    """

    core: Core
    store: TensorStore
    wire: Wire
    view: SequenceView
    stored: Stored = Stored.BEFORE
    heads_degree: int | None = None
    _layouts: dict[tuple[int, int], Layout] = field(default_factory=dict, init=False)

    @property
    def rank(self) -> int:
        """This process's, in the group that shares the sequence."""
        return self.wire.group.rank

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, ParallelState | None]:
        """See `offload.Core`.

        Raises:
            ValueError: for a degree that the call's heads don't allow.
            MemoError: for tensors of different dtypes, and for attention dropout on a ring.
        """
        with without_autocast(call) as cast:
            layout, fused = self._exchanged(cast)
            heads = cast.heads if fused is None else heads_of(fused)
            inner = self._inner_call(layout, cast, heads)
            with self._numbers() if options_of(inner).dropout else nullcontext():
                o, state = layout.inner.forward(inner, tier)
            del heads, inner
            if fused is None:
                return o, None if state is None else ParallelState(state, None)
            held = None if tier is None else self._keep(fused, o, tier)
            parts = [o]
            del fused, o
            (own,) = layout.axis.to_tokens(parts, [layout.shares.q])
        return own, None if state is None else ParallelState(state, held)

    def _numbers(self) -> AbstractContextManager[None]:
        """What attention's dropout draws inside, no other rank draws."""
        return own_numbers(self.rank)

    def _exchanged(self, call: CoreCall) -> tuple[Layout, Fused | None]:
        """q, k and v of own heads and all tokens; None where there is nothing to exchange."""
        if isinstance(call.options, Exchanged):
            return call.options.layout, call.options.take()
        layout = self.layout_of(call)
        if layout.is_alone:
            return layout, None
        return layout, layout.axis.to_heads(swapped(call.heads), layout.call_owners).wait()

    def _keep(self, fused: Fused, o: Tensor, tier: Tier) -> Ticket | None:
        match self.stored:
            case Stored.BEFORE:
                return None
            case Stored.OUTPUT:
                return self.store.put([o], tier, Turn.CORE)
            case Stored.AFTER:
                return self.store.put([o, fused.buffer], tier, Turn.CORE)

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """See `offload.Core`."""
        assert isinstance(end.state, ParallelState)
        with without_autocast(call) as cast:
            layout = self.layout_of(cast)
            if layout.is_alone:
                end.state = end.state.inner
                inner = self._inner_call(layout, cast, cast.heads)
                heads, extras = layout.inner.backward(inner, end)
            else:
                grads, extras = self._backward_inside(layout, cast, end)
                is_own = call.is_own and cast.heads[0] is call.heads[0]
                out = swapped(call.heads) if is_own else None
                heads = tuple(swapped(layout.axis.to_tokens(grads, layout.call_owners, out)))
        return heads, _whole_extras(layout, call.extras, extras)

    def _backward_inside(
        self, layout: Layout, call: CoreCall, end: CoreEnd
    ) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
        """Gradients of own heads and all tokens, after one all-to-all of what is missing."""
        assert isinstance(end.state, ParallelState)
        # The ticket goes with `state`, o with `end`: they need not lie beside gradients.
        state = end.state
        end.state = state.inner
        held = () if state.held is None else self.store.get(state.held)
        parts = [end.grad_o]
        owners: list[Owners] = [layout.shares.q]
        del end.grad_o
        if not held:
            parts.append(end.o)
            owners.append(layout.shares.q)
        del end.o
        fused = self._fused(layout, call, held)
        if fused is None:
            parts.extend(swapped(call.heads))
            owners.extend(layout.call_owners)
        grad_o, *rest = layout.axis.to_heads(parts, owners).wait().views()
        o, *heads = (*held[:1], *rest)
        # A kernel's graph wants q, k and v with the strides that forward's exchange gave them.
        fused = Fused.of(heads) if fused is None else fused
        inner = self._inner_call(layout, call, heads_of(fused))
        inner_end = CoreEnd(o=o, grad_o=grad_o, state=state.inner)
        del state, held, heads, rest, fused, o, grad_o
        grads, extras = layout.inner.backward(inner, inner_end)
        return swapped(grads), extras

    @staticmethod
    def _fused(layout: Layout, call: CoreCall, held: Sequence[Tensor]) -> Fused | None:
        """q, k and v, if they were stored after the exchange or exchanged tile by tile."""
        if len(held) > 1:
            return layout.fused(call, held[1])
        return call.options.take() if isinstance(call.options, Exchanged) else None

    def layout_of(self, call: CoreCall) -> Layout:
        """The layout for calls with as many heads."""
        if isinstance(call.options, Exchanged):
            return call.options.layout
        q, k, _ = call.heads
        key = q.shape[1], k.shape[1]
        if key not in self._layouts:
            self._layouts[key] = self._make_layout(*key)
        return self._layouts[key]

    def _make_layout(self, heads: int, kv_heads: int) -> Layout:
        group, tokens = self.view.group, self.view.shares.tokens
        degree = heads_degree(group.size, heads, self.heads_degree)
        axes, shares = share_axes(group.size, degree), share_heads(heads, kv_heads, degree)
        row, place = axes.place(group.rank)
        members, runs = axes.rows[row], runs_of(shares, place)
        axis = HeadsAxis(self.wire, members, tuple(tokens[rank] for rank in members), place)
        inner = self.core if len(runs) == 1 else RunsCore(self.core, runs)
        if len(axes.rows) > 1:
            inner = RingCore(self._ring(axes, row, place), self.store, runs)
        return Layout(axis, shares, inner)

    def _ring(self, axes: Axes, row: int, place: int) -> RingAxis:
        column = tuple(members[place] for members in axes.rows)
        shares = self.view.shares
        spans = tuple(tuple(shares.of(rank) for rank in members) for members in axes.rows)
        return RingAxis(self.wire, column, spans, row)

    def _inner_call(self, layout: Layout, call: CoreCall, heads: tuple[Tensor, ...]) -> CoreCall:
        found = call.options
        options = found.options if isinstance(found, Exchanged) else options_of(call)
        return CoreCall(
            heads=heads,
            extras=tuple(layout.own(extra) for extra in call.extras),
            options=replace(options, mask=self.view.whole(options.mask)),
            is_own=call.is_own or not layout.is_alone,
        )


def _whole_extras(
    layout: Layout, extras: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """A rank's share of the gradients of extras: zero for other ranks' heads."""
    wholes: list[Tensor | None] = []
    for extra, grad in zip(extras, grads, strict=True):
        whole = None if grad is None else torch.zeros_like(extra)
        if whole is not None and grad is not None:
            layout.own(whole).copy_(grad)
        wholes.append(whole)
    return tuple(wholes)
