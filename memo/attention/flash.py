"""The kernel of the flash-attn package, where it is installed and the tensors are on CUDA.

Scope: `flash_attn_func`'s arguments for one block. It knows windows and soft-capping, so blocks
    need no bands.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from memo.attention.blocks import Block
from memo.attention.contracts import BlockInputs
from memo.attention.recorded import RecordedKernel
from offload import TensorStore


def can_flash(q: Tensor) -> bool:
    """Whether flash-attn is there and takes tensors like `q` ([batch, heads, tokens, head_dim])."""
    fits = q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256
    return q.is_cuda and fits and find_spec("flash_attn") is not None


class FlashKernel(RecordedKernel):
    """`flash_attn.flash_attn_func` on one block; `attention` is that function unless given."""

    name = "flash-attn"

    def __init__(self, store: TensorStore, attention: Callable[..., Tensor] | None = None) -> None:
        super().__init__(store)
        self._attention = attention

    def attend(self, inputs: BlockInputs) -> Tensor:
        attention = self._attention or import_module("flash_attn").flash_attn_func
        out: Tensor = attention(
            *(t.transpose(1, 2) for t in (inputs.q, inputs.k, inputs.v)),
            softmax_scale=inputs.options.scale,
            window_size=window_size(inputs.block),
            softcap=inputs.options.softcap or 0.0,
        )
        return out.transpose(1, 2)


def window_size(block: Block) -> tuple[int, int]:
    """How many keys to the left and to the right a query sees; -1: all.

    flash-attn counts from a query's place when the last query is set beside the last key, we from
    positions.
    """
    late = block.q[1] - block.k[1]
    left = -1 if block.window is None else block.window - 1 - late
    right = late if block.causal else -1
    return left, right
