"""`core`: attention over the whole sequence, block by block, with the kernel that fits.

Scope: choosing a kernel, cutting a mask into blocks, putting the pieces together; both directions.
It is the runtime's `Core`, and `attend` is the same for a layer that is not tiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memo.attention.blocks import Block, blocks_of
from memo.attention.blockwise import BlockwiseKernel
from memo.attention.contracts import AttentionOptions, BlockInputs, Kernel
from memo.attention.sdpa import SdpaKernel
from offload import CoreCall, CoreState, TensorStore, Tier


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
        self._sdpa = SdpaKernel(store)
        self._blockwise = BlockwiseKernel(store)

    def kernel_for(self, call: CoreCall) -> Kernel:
        """The fused kernel where it can do what is asked, else the blockwise one."""
        options = _options(call)
        q, _, v = call.heads
        special = options.softcap is not None or options.dropout or call.extras
        return self._blockwise if special or v.shape[-1] > q.shape[-1] else self._sdpa

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, BlockStates | None]:
        q, _, v = call.heads
        kernel, o, states = self.kernel_for(call), None, []
        blocks = list(blocks_of(_options(call).mask, q.shape[0]))
        for block in blocks:
            out, state = kernel.forward(_inputs(call, block), tier)
            if state is not None:
                states.append(state)
            out = out.transpose(1, 2)
            if len(blocks) == 1 and out.shape[:2] == (q.shape[0], q.shape[2]):
                o = out
            else:
                o = _zeros(q, v) if o is None else o
                _part(o, block.rows, block.q, dim=1).copy_(out)
        o = _zeros(q, v) if o is None else o
        return o, None if tier is None else BlockStates(states)

    def backward(
        self, grad_o: Tensor, call: CoreCall, o: Tensor, state: CoreState
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        assert isinstance(state, BlockStates)
        sums = _Sums(call)
        kernel = self.kernel_for(call)
        for index, block in enumerate(blocks_of(_options(call).mask, grad_o.shape[0])):
            parts = (_part(t, block.rows, block.q, dim=1).transpose(1, 2) for t in (grad_o, o))
            grad_part, o_part = parts
            grads = kernel.backward(grad_part, _inputs(call, block), o_part, state.states[index])
            sums.add(block, (grads.q, grads.k, grads.v), grads.sinks)
        return sums.value()


class _Sums:
    """Gradients of whole q, k, v and of the sinks, from those of blocks."""

    def __init__(self, call: CoreCall) -> None:
        self._call = call
        self._heads: tuple[Tensor, ...] | None = None
        self._sinks: Tensor | None = None

    def add(self, block: Block, heads: tuple[Tensor, ...], sinks: Tensor | None) -> None:
        if sinks is not None:
            self._sinks = sinks if self._sinks is None else self._sinks + sinks
        wholes = self._call.heads
        if self._heads is None and all(
            a.shape == b.shape for a, b in zip(heads, wholes, strict=True)
        ):
            self._heads = heads
            return
        self._heads = self._heads or tuple(torch.zeros_like(whole) for whole in wholes)
        for whole, part, tokens in zip(
            self._heads, heads, (block.q, block.k, block.k), strict=True
        ):
            _part(whole, block.rows, tokens, dim=2).add_(part)

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
        head_grads, extra_grads = ctx.core.backward(grads[0], call, o, ctx.state)
        return (None, None, None, *head_grads, *extra_grads)


def _options(call: CoreCall) -> AttentionOptions:
    assert isinstance(call.options, AttentionOptions)
    return call.options


def _inputs(call: CoreCall, block: Block) -> BlockInputs:
    ranges: Iterator[tuple[int, int]] = iter((block.q, block.k, block.k))
    q, k, v = (
        _part(t, block.rows, tokens, dim=2) for t, tokens in zip(call.heads, ranges, strict=True)
    )
    return BlockInputs(q, k, v, call.extras[0] if call.extras else None, block, _options(call))


def _part(tensor: Tensor, rows: tuple[int, int], tokens: tuple[int, int], *, dim: int) -> Tensor:
    by_row = tensor.narrow(0, rows[0], rows[1] - rows[0])
    return by_row.narrow(dim, tokens[0], tokens[1] - tokens[0])


def _zeros(q: Tensor, v: Tensor) -> Tensor:
    return q.new_zeros((q.shape[0], q.shape[2], q.shape[1], v.shape[-1]))
