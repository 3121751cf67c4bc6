"""`core`: attention over the whole sequence, block by block, with the kernel that fits.

Scope: choosing a kernel, cutting a mask into blocks, putting the pieces together; both directions.
It is the runtime's `Core`, and `attend` is the same for a layer that is not tiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memo.attention.blocks import Block, blocks_of
from memo.attention.blockwise import BlockwiseKernel
from memo.attention.contracts import AttentionOptions, BlockInputs, Kernel
from memo.attention.flash import FlashKernel, can_flash
from memo.attention.flex import FlexKernel
from memo.attention.heads import HeadPart, head_parts
from memo.attention.masks import Range
from memo.attention.sdpa import SdpaKernel
from offload import CoreCall, CoreEnd, CoreState, TensorStore, Tier


@dataclass(slots=True)
class BlockStates:
    """The kernels' states, in the order of blocks."""

    states: list[CoreState]

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self.states)


class AttentionCore:
    """Attention by blocks; `options` of a call are `AttentionOptions`, its extras nothing or the
    sinks ([heads]).
    """

    def __init__(self, store: TensorStore) -> None:
        # Both directions of a call must be cut alike, whatever becomes of the thread count in
        # between.
        self._threads = torch.get_num_threads()
        self._sdpa, self._flash = SdpaKernel(store), FlashKernel(store)
        self._flex, self._blockwise = FlexKernel(store), BlockwiseKernel(store)

    def kernel_for(self, call: CoreCall) -> Kernel:
        """The fastest kernel that can do what is asked; the blockwise one can do everything."""
        options, (q, _, v) = _options(call), call.heads
        if options.dropout or v.shape[-1] > q.shape[-1]:
            return self._blockwise
        if can_flash(q) and not call.extras:
            return self._flash
        if options.softcap is not None or call.extras:
            return self._flex if q.is_cuda else self._blockwise
        return self._sdpa

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, BlockStates | None]:
        with _without_autocast(call) as cast:
            return self._forward(cast, tier)

    def _forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, BlockStates | None]:
        q, _, v = call.heads
        kernel, o, states = self.kernel_for(call), None, []
        for piece in self._pieces(call):
            out, state = kernel.forward(_inputs(call, piece), tier)
            if state is not None:
                states.append(state)
            out = out.transpose(1, 2)
            if out.shape[:3] == (q.shape[0], q.shape[2], q.shape[1]):
                o = out
            else:
                o = _zeros(q, v) if o is None else o
                piece.queries_of(o, heads_dim=2).copy_(out)
            del out  # or it would lie beside the next piece's
        o = _zeros(q, v) if o is None else o
        return o, None if tier is None else BlockStates(states)

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        with _without_autocast(call) as cast:
            own = call.is_own and cast.heads[0].dtype == call.heads[0].dtype
            return self._backward(cast, end, over=own and _is_one_block(cast))

    def _backward(
        self, call: CoreCall, end: CoreEnd, *, over: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        assert isinstance(end.state, BlockStates)
        sums = _Sums(call, over=over)
        kernel, pieces = self.kernel_for(call), list(self._pieces(call))
        grad_parts = [piece.queries_of(end.grad_o, heads_dim=2) for piece in pieces]
        if over:
            # Kernels copy what is not contiguous; copied here, the whole need not lie beside.
            grad_parts = [part.contiguous() for part in grad_parts]
            del end.grad_o
        for piece, state in zip(pieces, end.state.states, strict=True):
            grad_part = grad_parts.pop(0).transpose(1, 2)
            o_part = piece.queries_of(end.o, heads_dim=2).transpose(1, 2)
            grads = kernel.backward(grad_part, _inputs(call, piece), o_part, state)
            sums.add(piece, (grads.q, grads.k, grads.v), grads.sinks)
            del grads, grad_part  # or they would lie beside the next piece's
        return sums.value()

    def _pieces(self, call: CoreCall) -> Iterator[_Piece]:
        q, k, _ = call.heads
        whole = HeadPart((0, q.shape[1]), (0, k.shape[1]))
        parts = [whole]
        if q.device.type == "cpu" and self.kernel_for(call) is self._sdpa:
            groups = q.shape[1] // k.shape[1]
            parts = list(head_parts(q.shape[0], k.shape[1], groups, self._threads))
        for block in blocks_of(_options(call).mask, q.shape[0]):
            for part in parts:
                yield _Piece(block, part)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One block of one part of the heads."""

    block: Block
    part: HeadPart

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


class _Sums:
    """Gradients of whole q, k, v and of the sinks, from those of pieces.

    With `over` they are written over q, k and v: pieces that share no query and no key, and leave
    none out, need each part of them once.
    """

    def __init__(self, call: CoreCall, *, over: bool) -> None:
        self._call, self._over = call, over
        self._heads: tuple[Tensor, ...] | None = None
        self._sinks: Tensor | None = None

    def add(self, piece: _Piece, heads: tuple[Tensor, ...], sinks: Tensor | None) -> None:
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


def attend(core: AttentionCore, call: CoreCall) -> Tensor:
    """Attention as one differentiable operation, for a layer that runs whole; `o` [batch,
    tokens, heads, head_dim].
    """
    tensors = (*call.heads, *call.extras)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return core.forward(call, None)[0]
    result: Tensor = _Attend.apply(core, call.options, len(call.heads), *tensors)  # type: ignore[no-untyped-call]
    return result


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, core: AttentionCore, options: object, count: int, *tensors: Tensor
    ) -> Tensor:
        call = CoreCall(heads=tensors[:count], extras=tensors[count:], options=options)
        o, ctx.state = core.forward(call, Tier.DEVICE)
        ctx.core, ctx.options, ctx.count = core, options, count
        ctx.save_for_backward(o, *tensors)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        o, *tensors = ctx.saved_tensors
        heads, extras = tuple(tensors[: ctx.count]), tuple(tensors[ctx.count :])
        call = CoreCall(heads=heads, extras=extras, options=ctx.options)
        end = CoreEnd(o=o, grad_o=grads[0], state=ctx.state)
        head_grads, extra_grads = ctx.core.backward(call, end)
        return (None, None, None, *head_grads, *extra_grads)


@contextmanager
def _without_autocast(call: CoreCall) -> Iterator[CoreCall]:
    """The call as autocast would have kernels see it, which they are run on without autocast: casts
    of their own would be saved for backward beside q, k and v."""
    device_type = call.heads[0].device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        call = replace(call, heads=tuple(tensor.to(dtype) for tensor in call.heads))
    with torch.autocast(device_type, enabled=False):
        yield call


def _is_one_block(call: CoreCall) -> bool:
    """Whether every query and key of a row are in one block, and so in one piece per head."""
    mask, q = _options(call).mask, call.heads[0]
    blocks = list(blocks_of(mask, q.shape[0]))
    everything = (0, mask.tokens)
    rows = [block.rows for block in blocks]
    whole = all(block.q == everything and block.k == everything for block in blocks)
    return whole and sum(stop - first for first, stop in rows) == q.shape[0]


def _options(call: CoreCall) -> AttentionOptions:
    assert isinstance(call.options, AttentionOptions)
    return call.options


def _inputs(call: CoreCall, piece: _Piece) -> BlockInputs:
    q, k, v = call.heads
    return BlockInputs(
        q=piece.queries_of(q, heads_dim=1),
        k=piece.keys_of(k),
        v=piece.keys_of(v),
        sinks=call.extras[0] if call.extras else None,
        block=piece.block,
        options=_options(call),
        spread=piece.part.spread,
    )


def _zeros(q: Tensor, v: Tensor) -> Tensor:
    return q.new_zeros((q.shape[0], q.shape[2], q.shape[1], v.shape[-1]))
