"""Attention on a ring: a row's queries over the keys of all rows, merged by the log-sum-exp.

Scope: `RingCore`, the core inside `ParallelCore` when there are more ranks than heads. It keeps one
other row's k and v beside its own, and the log-sum-exp for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memo.attention.contracts import AttentionOptions
from memo.attention.pieces import options_of
from memo.attention.sdpa import Bands
from memo.parallel.contracts import HeadRun
from memo.parallel.partial import PartEnd, PartInputs, attend_part, part_gradients
from memo.parallel.ring import RingAxis
from memo.parallel.ring_pieces import RingPiece, ring_pieces
from offload import CoreCall, CoreEnd, MemoError, TensorStore, Tier, Turn
from offload.store import Ticket

_SCORE_BYTES = 64 << 20
"""Scores that are written out at a time, in float32, at most; as in `memo.attention.blockwise`."""


@dataclass(frozen=True, slots=True)
class RingState:
    """The log-sum-exp, [batch, heads, own row's tokens], float32 or wider."""

    lse: Ticket

    @property
    def nbytes(self) -> int:
        return self.lse.size_bytes


@dataclass(slots=True)
class _Work:
    """One piece for one run of heads: the slices of q-like ([batch, heads, tokens, size]) and of
    k-like tensors that it takes.
    """

    run: HeadRun
    piece: RingPiece

    def queries_of(self, tensor: Tensor) -> Tensor:
        return tensor[slice(*self.piece.block.rows), slice(*self.run.q), self.piece.q]

    def keys_of(self, tensor: Tensor) -> Tensor:
        return tensor[slice(*self.piece.block.rows), slice(*self.run.kv), self.piece.k]


@dataclass(frozen=True, slots=True)
class RingCore:
    """See `offload.Core`; the call's tensors are those of the row's tokens, its mask that of the
    whole sequence. `part` and `gradients` are what a part is made and its gradients computed by,
    `pieces` says which are run; a trace has them stand for another device's, and for many.
    """

    axis: RingAxis
    store: TensorStore
    runs: tuple[HeadRun, ...]
    part: Callable[..., PartInputs] = PartInputs
    gradients: Callable[[PartInputs, PartEnd], tuple[Tensor, Tensor, Tensor]] = part_gradients
    pieces: Callable[[Iterator[RingPiece]], Iterator[RingPiece]] = iter
    _bands: Bands = field(default_factory=Bands, init=False)

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, RingState | None]:
        options = _checked(options_of(call))
        q, k, v = call.heads
        wide = torch.promote_types(q.dtype, torch.float32)
        o = q.new_zeros((*q.shape[:3], v.shape[-1]), dtype=wide)
        lse = q.new_full(q.shape[:3], -torch.inf, dtype=wide)
        for row, held in self.axis.rotate(_joined(k, v)):
            for work, inputs in self._parts(options, q, row, _parted(held, k, v)):
                part = attend_part(inputs)
                _merge(work.queries_of(o), work.queries_of(lse), *part)
        if call.extras:
            lse = _with_sinks(o, lse, call.extras[0])
        own = o.to(q.dtype).transpose(1, 2)
        return own, None if tier is None else RingState(self.store.put([lse], tier, Turn.CORE))

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        assert isinstance(end.state, RingState)
        (lse,) = self.store.get(end.state.lse)
        options, (q, k, v) = options_of(call), call.heads
        o, grad_o = (tensor.transpose(1, 2) for tensor in (end.o, end.grad_o))
        grad_q = torch.zeros_like(q, dtype=lse.dtype)

        def gradient(row: int, held: Tensor) -> Tensor:
            grad = torch.zeros_like(held, dtype=lse.dtype)
            grad_k, grad_v = _parted(grad, k, v)
            for work, inputs in self._parts(options, q, row, _parted(held, k, v)):
                part = self.gradients(inputs, PartEnd(*map(work.queries_of, (o, grad_o, lse))))
                work.queries_of(grad_q).add_(part[0])
                work.keys_of(grad_k).add_(part[1])
                work.keys_of(grad_v).add_(part[2])
            return grad

        grad_kv = self.axis.rotate_with_gradients(_joined(k, v), gradient)
        grads = (grad_q, *_parted(grad_kv, k, v))
        extras = tuple(_sink_gradient(sinks, o, grad_o, lse) for sinks in call.extras)
        return tuple(grad.to(q.dtype) for grad in grads), extras

    def _inputs(
        self, work: _Work, options: AttentionOptions, q: Tensor, kv: tuple[Tensor, Tensor]
    ) -> PartInputs:
        k, v = map(work.keys_of, kv)
        block, scale, softcap = work.piece.block, options.scale, options.softcap
        return self.part(work.queries_of(q), k, v, block, scale, softcap, self._bands)

    def _parts(
        self, options: AttentionOptions, q: Tensor, row: int, kv: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[_Work, PartInputs]]:
        """What the row's queries have to do with the keys of another row."""
        spans = self.axis.spans
        found = ring_pieces(options.mask, q.shape[0], spans[self.axis.row], spans[row])
        for piece in self.pieces(found):
            for run in self.runs:
                work = _Work(run, piece)
                inputs = self._inputs(work, options, q, kv)
                if inputs.is_fused:
                    yield work, inputs
                    continue
                row_bytes = 4 * inputs.q.shape[0] * inputs.q.shape[1] * inputs.k.shape[2]
                for cut in piece.cut(max(16, _SCORE_BYTES // row_bytes)):
                    work = _Work(run, cut)
                    yield work, self._inputs(work, options, q, kv)


def _checked(options: AttentionOptions) -> AttentionOptions:
    if options.dropout:
        raise MemoError(
            f"attention dropout of {options.dropout} with more ranks than heads: memo has none on "
            "a ring; set the model's attention_dropout to 0, or use fewer ranks"
        )
    return options


def _joined(k: Tensor, v: Tensor) -> Tensor:
    """[batch, kv_heads, tokens, size] of both as [tokens, batch, features]."""
    return torch.cat([t.permute(2, 0, 1, 3).flatten(2) for t in (k, v)], dim=-1)


def _parted(joined: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The views of both, with the heads of `k` and `v`."""
    shapes = [(t.shape[1], t.shape[3]) for t in (k, v)]
    parts = joined.split([heads * size for heads, size in shapes], dim=-1)
    like_k, like_v = (
        part.unflatten(-1, shape).permute(1, 2, 0, 3)
        for part, shape in zip(parts, shapes, strict=True)
    )
    return like_k, like_v


def _merge(o: Tensor, lse: Tensor, part_o: Tensor, part_lse: Tensor) -> None:
    """Let `o` and `lse`, of the keys before, be those of the part's keys too."""
    both = torch.logaddexp(lse, part_lse.to(lse.dtype))
    o.lerp_(part_o.to(o.dtype), torch.exp(part_lse - both).unsqueeze(-1))
    lse.copy_(both)


def _with_sinks(o: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Scale `o` for keys whose values are zero and whose scores are `sinks` ([heads]); return the
    log-sum-exp with them.
    """
    both = torch.logaddexp(lse, sinks.view(1, -1, 1).to(lse.dtype))
    o.mul_(torch.exp(lse - both).unsqueeze(-1))
    return both


def _sink_gradient(sinks: Tensor, o: Tensor, grad_o: Tensor, lse: Tensor) -> Tensor:
    row_sums = (o.to(lse.dtype) * grad_o.to(lse.dtype)).sum(-1)
    weights = torch.exp(sinks.view(1, -1, 1).to(lse.dtype) - lse)
    return -(weights * row_sums).sum(dim=(0, 2)).to(sinks.dtype)
