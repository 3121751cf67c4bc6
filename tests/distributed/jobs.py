"""What ranks do in tests of the exchange: one call of attention, forward and backward, on their own
tokens.

Scope: cases, which are plain data, and the jobs that run them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from memo.attention.contracts import AttentionOptions
from memo.attention.core import AttentionCore, attend
from memo.attention.masks import RangeMask
from memo.parallel.contracts import Stored
from memo.parallel.core import ParallelCore
from memo.parallel.exchange import Owners
from memo.parallel.shares import share_tokens
from memo.parallel.tiled import TiledExchanges
from memo.parallel.view import SequenceView
from memo.parallel.wire import Wire
from offload import CoreCall, CoreEnd, TensorStore, Tier, split_tokens


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call of attention over ranks. `mask` is of the whole sequence."""

    mask: RangeMask
    heads: int = 4
    kv_heads: int = 2
    batch: int = 1
    size: int = 8
    v_size: int = 8
    unit_tokens: int = 1
    softcap: float | None = None
    sinks: bool = False
    dropout: float = 0.0
    dtype: torch.dtype = torch.float64
    stored: Stored = Stored.BEFORE
    degree: int | None = None
    tier: Tier = Tier.HOST
    is_own: bool = False
    tile_tokens: int | None = None
    autocast: bool = False

    def options(self, mask: RangeMask) -> AttentionOptions:
        return AttentionOptions(mask=mask, scale=0.4, softcap=self.softcap, dropout=self.dropout)

    def tensors(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Whole q, k, v as [batch, heads, tokens, size]; sinks; the gradient of o."""
        generator = torch.Generator().manual_seed(17)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=self.dtype)

        tokens = self.mask.tokens
        shapes = (self.heads, self.size), (self.kv_heads, self.size), (self.kv_heads, self.v_size)
        heads = [draw(self.batch, tokens, *shape).transpose(1, 2) for shape in shapes]
        sinks = [draw(self.heads)] if self.sinks else []
        return heads, sinks, draw(self.batch, tokens, self.heads, self.v_size)


@dataclass(frozen=True)
class Outcome:
    """A rank's o and gradients, for its own tokens; bytes that it sent and stored."""

    o: Tensor
    grads: tuple[Tensor, ...]
    sink_grads: tuple[Tensor | None, ...]
    sent_bytes: dict[str, int]
    backward_bytes: dict[str, int]
    calls: dict[str, int]
    state_bytes: int
    held_bytes: int
    owners: tuple[Owners, ...]
    rank: int


def core_of(wire: Wire, case: Case) -> tuple[ParallelCore, TensorStore]:
    """A rank's core for a case, and the store behind it."""
    shares = share_tokens(case.mask.tokens, wire.group.size, case.unit_tokens)
    view, store = SequenceView(wire.group, shares, case.mask.rows), TensorStore()
    core = AttentionCore(store)
    degree = case.degree
    return ParallelCore(core, store, wire, view, stored=case.stored, heads_degree=degree), store


def call_of(case: Case, view: SequenceView) -> CoreCall:
    """A rank's own part of the call, with the mask that a model makes of its own tokens."""
    heads, sinks, _ = case.tensors()
    start, stop = view.own
    local = RangeMask(stop - start, (), case.mask.causal, case.mask.window, case.mask.chunk)
    return CoreCall(
        heads=tuple(_own(tensor, view) for tensor in heads),
        extras=tuple(sinks),
        options=case.options(local),
        is_own=case.is_own,
    )


def attention(wire: Wire, case: Case) -> Outcome:
    """Forward and backward of one call."""
    core, store = core_of(wire, case)
    view, grad_o = core.view, case.tensors()[2]
    call = call_of(case, view)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        join = _joining(core, case)
        o, state = core.forward(_arrived(join, call, case), case.tier)
        assert state is not None
        sent, state_bytes = _sent(wire), state.nbytes
        held_bytes = sum(count.held_bytes for count in store.counts.values())
        end = CoreEnd(o=o, grad_o=view.cut(grad_o).to(o.dtype, copy=True), state=state)
        grads, sink_grads = core.backward(_arrived(join, call, case), end)
    after = _sent(wire)
    return Outcome(
        o=o,
        grads=tuple(grad.clone() for grad in grads),
        sink_grads=sink_grads,
        sent_bytes=sent,
        backward_bytes={name: after[name] - sent[name] for name in after},
        calls={name: count.calls for name, count in wire.counts.items()},
        state_bytes=state_bytes,
        held_bytes=held_bytes,
        owners=core.layout_of(call).call_owners,
        rank=wire.group.rank,
    )


def differentiable(wire: Wire, case: Case) -> tuple[Tensor, ...]:
    """o and gradients of q, k and v for own tokens, as a layer that runs whole has them."""
    core, _ = core_of(wire, case)
    call = call_of(case, core.view)
    heads = [head.requires_grad_() for head in call.heads]
    o = attend(cast(Any, core), call)
    return (o.detach(), *torch.autograd.grad(o, heads, core.view.cut(case.tensors()[2])))


def _joining(core: ParallelCore, case: Case) -> TiledExchanges | None:
    return None if case.tile_tokens is None else TiledExchanges(core, case.tile_tokens)


def _arrived(join: TiledExchanges | None, call: CoreCall, case: Case) -> CoreCall:
    """The call for the core: itself, or exchanged tile by tile."""
    if join is None or case.tile_tokens is None:
        return call
    joined = join()
    for tile in split_tokens(call.heads[0].shape[2], case.tile_tokens):
        heads = tuple(head[:, :, tile.start : tile.stop] for head in call.heads)
        joined.write(tile, replace(call, heads=heads))
    return joined.value()


def several(wire: Wire, cases: list[Case]) -> list[Outcome]:
    """One case after another, each with counts of its own."""
    return [attention(Wire(wire.group), case) for case in cases]


def _own(tensor: Tensor, view: SequenceView) -> Tensor:
    return view.cut(tensor, 2).transpose(1, 2).clone().transpose(1, 2)


def _sent(wire: Wire) -> dict[str, int]:
    return {name: count.sent_bytes for name, count in wire.counts.items()}


def returning(wire: Wire, value: Any) -> tuple[int, Any]:
    """The rank and what it was given."""
    return wire.group.rank, value
