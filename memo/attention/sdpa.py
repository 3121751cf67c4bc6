"""The kernel of `scaled_dot_product_attention`, or of any differentiable attention function like
it.

Scope: running torch's own forward and backward with q, k, v and o left out of what autograd holds
between them. GQA is the kernel's own (k and v are not repeated).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from memo.attention.blocks import Block
from memo.attention.contracts import BlockInputs, HeadGradients
from offload import CoreState, Outlet, Recording, TensorStore, Tier, inlet, run_backward
from offload.contracts import MemoError, nbytes

_NAMES = ("q", "k", "v")


@dataclass(slots=True)
class RecordedAttention:
    """A block's graph without q, k, v and o."""

    recording: Recording
    outlet: Outlet
    grads: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return self.recording.nbytes


@dataclass(slots=True)
class Bands:
    """Additive masks of band blocks by shape: one tensor serves all blocks of that shape, and is
    stored by none.
    """

    _bands: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def of(self, block: Block, like: Tensor) -> Tensor:
        key = (*block.shape, block.causal, block.window, like.dtype, like.device)
        if key not in self._bands:
            seen = block.allowed(like.device)
            self._bands[key] = torch.zeros(
                seen.shape, dtype=like.dtype, device=like.device
            ).masked_fill_(~seen, -torch.inf)
        return self._bands[key]


@dataclass(slots=True)
class SdpaKernel:
    """`torch.nn.functional.scaled_dot_product_attention` on one block."""

    store: TensorStore
    bands: Bands = field(default_factory=Bands)

    def forward(
        self, inputs: BlockInputs, tier: Tier | None
    ) -> tuple[Tensor, RecordedAttention | None]:
        v_dim = inputs.v.shape[-1]
        inputs = _padded(inputs)
        if tier is None:
            return self._attend(inputs, inputs.q, inputs.k, inputs.v)[..., :v_dim], None
        named = _named(inputs)
        grads: dict[str, Tensor] = {}
        recording = Recording(self.store, tier, named, self._masks(inputs))
        with torch.enable_grad(), recording.recording():
            ends = [inlet(named[name], partial(grads.__setitem__, name)) for name in _NAMES]
            out = self._attend(inputs, *ends)
            outlet = Outlet.of(out)
        recording.alias(out, "o")
        recording.seal()
        _refuse_quadratic(recording, inputs)
        assert outlet is not None
        return out.detach()[..., :v_dim], RecordedAttention(recording, outlet, grads)

    def backward(
        self, grad_o: Tensor, inputs: BlockInputs, o: Tensor, state: CoreState
    ) -> HeadGradients:
        assert isinstance(state, RecordedAttention)
        v_dim = inputs.v.shape[-1]
        inputs = _padded(inputs)
        missing = inputs.v.shape[-1] - v_dim
        if missing:
            grad_o, o = functional.pad(grad_o, (0, missing)), functional.pad(o, (0, missing))
        with state.recording.bound({**_named(inputs), "o": o}):
            run_backward([state.outlet], [grad_o], keep_graph=False)
        grads = state.grads
        return HeadGradients(grads.pop("q"), grads.pop("k"), grads.pop("v")[..., :v_dim])

    def _masks(self, inputs: BlockInputs) -> tuple[Tensor, ...]:
        return () if _is_plain(inputs.block) else (self.bands.of(inputs.block, inputs.q),)

    def _attend(self, inputs: BlockInputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        masks = self._masks(inputs)
        if inputs.spread:
            k, v = (t.expand(-1, inputs.groups, -1, -1) for t in (k, v))
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=masks[0] if masks else None,
            is_causal=inputs.block.is_square and q.shape[2] > 1,
            scale=inputs.options.scale,
            enable_gqa=inputs.groups > 1 and not inputs.spread,
        )


def _is_plain(block: Block) -> bool:
    return block.is_square or block.is_open


def _named(inputs: BlockInputs) -> dict[str, Tensor]:
    return {"q": inputs.q, "k": inputs.k, "v": inputs.v}


def _padded(inputs: BlockInputs) -> BlockInputs:
    # Kernels that keep no [S, S] want one head size for all (DeepSeek's MLA has a smaller one for
    # v). Zeros in v give zeros in o, so the result does not change by a bit.
    missing = inputs.q.shape[-1] - inputs.v.shape[-1]
    return replace(inputs, v=functional.pad(inputs.v, (0, missing))) if missing else inputs


def _refuse_quadratic(recording: Recording, inputs: BlockInputs) -> None:
    # A log-sum-exp is a few bytes per query and head; what is larger than q, k and v together is a
    # matrix of scores.
    allowed = 4 * sum(map(nbytes, _named(inputs).values())) + (1 << 20)
    if recording.nbytes > allowed:
        raise MemoError(
            f"scaled_dot_product_attention kept {recording.nbytes:,} bytes for a block of "
            f"{inputs.q.shape[2]:,} queries: no kernel without a matrix of scores takes "
            f"{inputs.q.dtype} heads of {inputs.q.shape[-1]} on {inputs.q.device.type}"
        )
