"""`core`: attention over the whole sequence, piece by piece, with the kernel that fits.

Scope: choosing a kernel, cutting a call into pieces, running them; both directions. It is the
runtime's `Core`, and `attend` is the same for a layer that is not tiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memo.attention.blocks import blocks_of, everything, right_padding_of
from memo.attention.blockwise import BlockwiseKernel
from memo.attention.contracts import Kernel
from memo.attention.fastest import Fastest
from memo.attention.flash import FlashKernel, can_flash
from memo.attention.flex import FlexKernel
from memo.attention.heads import HeadPart, head_parts, spread_heads
from memo.attention.pieces import Piece, Sums, are_disjoint, options_of
from memo.attention.sdpa import SdpaKernel
from memo.attention.shapes import Choice, Shape, all_heads
from memo.attention.varlen import VarlenKernel
from offload import Core, CoreCall, CoreEnd, CoreState, TensorStore, Tier

_MAX_CHOICES = 64
"""A model has a few shapes times a few lengths; a choice that is forgotten is made again."""


@dataclass(frozen=True, slots=True)
class PieceState:
    """A piece, the kernel that ran it and what that needs for backward."""

    piece: Piece
    kernel: Kernel
    state: CoreState


@dataclass(frozen=True, slots=True)
class PieceStates:
    """What forward did, in order: backward takes the same pieces to the same kernels, whatever
    either would be cut into or choose by then.
    """

    pieces: tuple[PieceState, ...]

    @property
    def nbytes(self) -> int:
        return sum(piece.state.nbytes for piece in self.pieces)


class AttentionCore:
    """Attention by pieces; `options` of a call are `AttentionOptions`, its extras nothing or the
    sinks ([heads]).
    """

    def __init__(
        self,
        store: TensorStore,
        *,
        fastest: Fastest | None = None,
        varlen: VarlenKernel | None = None,
    ) -> None:
        self._store, self._fastest = store, fastest or Fastest()
        self._sdpa, self._flash = SdpaKernel(store), FlashKernel(store)
        self._varlen = varlen or VarlenKernel(store)
        self._flex, self._blockwise = FlexKernel(store), BlockwiseKernel(store)
        self._chosen: dict[Shape, Choice] = {}
        self._by_name: dict[str, Kernel] = {k.name: k for k in (self._sdpa, self._flash)}

    @property
    def chosen(self) -> dict[Shape, Choice]:
        """The kernel of every shape of call that has come, the latest new one last."""
        return dict(self._chosen)

    def kernel_for(self, call: CoreCall) -> Kernel:
        """The fastest kernel that can do what is asked; the blockwise one can do everything. With
        padding on the right, it is that of all but the padding.

        The first call of a shape may run several for comparison.
        """
        shape = Shape.of(call)
        kernel = self._kernel_by_rule(call, shape)
        if shape not in self._chosen:
            while len(self._chosen) >= _MAX_CHOICES:
                del self._chosen[next(iter(self._chosen))]
            self._chosen[shape] = Choice(kernel.name) if kernel else self._choose(call)
        return kernel or self._by_name[self._chosen[shape].kernel]

    def _kernel_by_rule(self, call: CoreCall, shape: Shape) -> Kernel | None:
        """None where several kernels can, and only trying tells which is the fastest."""
        q = call.heads[0]
        if "dropout" in shape.features or shape.v_head_dim > shape.head_dim:
            return self._blockwise
        if "softcap" in shape.features and "sinks" not in shape.features and can_flash(q):
            return self._flash
        if shape.features:
            return self._flex if q.is_cuda else self._blockwise
        if shape.sight != "ranges":
            # Nothing may then depend on what happened to be faster.
            return self._sdpa if torch.are_deterministic_algorithms_enabled() else None
        return self._varlen if self._varlen.takes(call) else self._kernel_of_blocks(q)

    def _kernel_of_blocks(self, q: Tensor) -> Kernel:
        return self._flash if can_flash(q) else self._sdpa

    def _choose(self, call: CoreCall) -> Choice:
        q = call.heads[0]
        piece = Piece(everything(options_of(call).mask, q.shape[0]), all_heads(call))
        choice = self._fastest.choose(piece.inputs_of(call))
        if choice.kernel not in self._by_name:
            self._by_name[choice.kernel] = self._fastest.candidates(q)[choice.kernel](self._store)
        return choice

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, PieceStates | None]:
        with without_autocast(call) as cast:
            return self._forward(cast, tier)

    def _forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, PieceStates | None]:
        q, _, v = call.heads
        o, done = None, []
        for kernel, piece in self._pieces(call):
            out, state = kernel.forward(piece.inputs_of(call), tier)
            if state is not None:
                done.append(PieceState(piece, kernel, state))
            out = out.transpose(1, 2)
            if out.shape[:3] == (q.shape[0], q.shape[2], q.shape[1]):
                o = out
            else:
                o = _zeros(q, v) if o is None else o
                piece.queries_of(o, heads_dim=2).copy_(out)
            del out  # or it would lie beside the next piece's
        o = _zeros(q, v) if o is None else o
        return o, None if tier is None else PieceStates(tuple(done))

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        assert isinstance(end.state, PieceStates)
        with without_autocast(call) as cast:
            own = call.is_own and cast.heads[0].dtype == call.heads[0].dtype
            over = own and are_disjoint([done.piece for done in end.state.pieces], cast)
            return self._backward(cast, end, end.state.pieces, over=over)

    def _backward(
        self, call: CoreCall, end: CoreEnd, pieces: tuple[PieceState, ...], *, over: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        sums = Sums(call, over=over)
        grad_parts = [done.piece.queries_of(end.grad_o, heads_dim=2) for done in pieces]
        if over:
            # Kernels copy what is not contiguous; copied here, the whole need not lie beside.
            grad_parts = [part.contiguous() for part in grad_parts]
            del end.grad_o
        for done in pieces:
            piece, grad_part = done.piece, grad_parts.pop(0).transpose(1, 2)
            o_part = piece.queries_of(end.o, heads_dim=2).transpose(1, 2)
            grads = done.kernel.backward(grad_part, piece.inputs_of(call), o_part, done.state)
            sums.add(piece, (grads.q, grads.k, grads.v), grads.sinks)
            del grads, grad_part  # or they would lie beside the next piece's
        return sums.value()

    def _pieces(self, call: CoreCall) -> Iterator[tuple[Kernel, Piece]]:
        kernel, mask, q = self.kernel_for(call), options_of(call).mask, call.heads[0]
        blocks = blocks_of(mask, q.shape[0])
        if kernel is self._varlen:
            yield kernel, Piece(everything(mask, q.shape[0]), all_heads(call))
            kernel, blocks = self._kernel_of_blocks(q), right_padding_of(mask, q.shape[0])
        parts = list(_parts(call, kernel))
        for block in blocks:
            for part in parts:
                yield kernel, Piece(block, part)


def attend(core: Core, call: CoreCall) -> Tensor:
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
    def forward(ctx: Any, core: Core, options: object, count: int, *tensors: Tensor) -> Tensor:
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
def without_autocast(call: CoreCall) -> Iterator[CoreCall]:
    """The call as autocast would have kernels see it, which they are run on without autocast: casts
    of their own would be saved for backward beside q, k and v."""
    device_type = call.heads[0].device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        call = replace(call, heads=tuple(tensor.to(dtype) for tensor in call.heads))
    with torch.autocast(device_type, enabled=False):
        yield call


def _parts(call: CoreCall, kernel: Kernel) -> Iterator[HeadPart]:
    q, k, _ = call.heads
    kv_heads, groups = k.shape[1], q.shape[1] // k.shape[1]
    if not isinstance(kernel, SdpaKernel):
        return iter([all_heads(call)])
    if q.device.type == "cpu":
        return head_parts(q.shape[0], kv_heads, groups, torch.get_num_threads())
    # What takes float32 or a band on CUDA knows no shared heads; else there would be all scores.
    needs_efficient = q.dtype == torch.float32 or options_of(call).mask.window is not None
    if groups > 1 and needs_efficient:
        return spread_heads(0, kv_heads, groups)
    return iter([all_heads(call)])


def _zeros(q: Tensor, v: Tensor) -> Tensor:
    return q.new_zeros((q.shape[0], q.shape[2], q.shape[1], v.shape[-1]))
