"""The kernel of torch's `scaled_dot_product_attention`.

Scope: its arguments for one block. GQA is the kernel's own (k and v are not repeated).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from memo.attention.blocks import Block
from memo.attention.contracts import BlockInputs
from memo.attention.recorded import RecordedKernel, dense
from offload import TensorStore

_MAX_BANDS = 8
"""Blocks of one mask have three or four shapes; lengths that vary bring others, and old ones go."""


@dataclass(slots=True)
class Bands:
    """Additive masks of band blocks by shape: one tensor serves all blocks of that shape, and is
    stored by none.
    """

    _bands: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def of(self, block: Block, like: Tensor) -> Tensor:
        key = (*block.shape, block.causal, block.window, like.dtype, like.device)
        if key not in self._bands:
            while len(self._bands) >= _MAX_BANDS:
                del self._bands[next(iter(self._bands))]
            seen = block.allowed(like.device)
            self._bands[key] = torch.zeros(
                seen.shape, dtype=like.dtype, device=like.device
            ).masked_fill_(~seen, -torch.inf)
        return self._bands[key]


class SdpaKernel(RecordedKernel):
    """`torch.nn.functional.scaled_dot_product_attention` on one block, by the `backend` given or
    the one that torch prefers.
    """

    def __init__(self, store: TensorStore, backend: SDPBackend | None = None) -> None:
        super().__init__(store)
        self.name = self.name_of(backend)
        self._backend = backend
        self._bands = Bands()

    @staticmethod
    def name_of(backend: SDPBackend | None) -> str:
        """What a report calls the kernel with this backend."""
        which = "" if backend is None else f" {backend.name.removesuffix('_ATTENTION').lower()}"
        return f"sdpa{which}"

    def constants(self, inputs: BlockInputs) -> tuple[Tensor, ...]:
        plain = inputs.block.is_square or inputs.block.is_open
        return () if plain else (self._bands.of(inputs.block, inputs.q),)

    def as_saved(self, o: Tensor) -> Tensor:
        """The memory-efficient kernel's backward does not ask how o lies: in half precision it
        takes each token's heads to follow those of the token before (`o_strideM` in PyTorch's
        `mem_eff_attention/kernel_backward.h`), and reads a part of a wider o wrongly.
        """
        return own_rows(o) if o.is_cuda else o

    def attend(self, inputs: BlockInputs) -> Tensor:
        bands = self.constants(inputs)
        k, v = inputs.k, inputs.v
        if inputs.spread:
            k, v = (t.expand(-1, inputs.groups, -1, -1) for t in (k, v))
        with nullcontext() if self._backend is None else sdpa_kernel(self._backend):
            return functional.scaled_dot_product_attention(
                inputs.q,
                k,
                v,
                attn_mask=bands[0] if bands else None,
                is_causal=inputs.block.is_square and inputs.q.shape[2] > 1,
                scale=inputs.options.scale,
                enable_gqa=inputs.groups > 1 and not inputs.spread,
            )


def own_rows(o: Tensor) -> Tensor:
    """`o` ([batch, heads, tokens, head_dim]) with no other heads between those of two tokens."""
    is_part = o.shape[2] > 1 and o.stride(2) > o.shape[1] * o.shape[3]
    return dense(o) if is_part else o
