"""The kernel of torch's `flex_attention`, for soft-capping and sinks on a GPU (it has no backward
on the CPU).

Scope: its arguments for one block. Sinks come after it: a sink is a key whose value is zero, so it
scales a query's output by exp(lse) / (exp(lse) + exp(sink)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from memo.attention.blocks import Block
from memo.attention.contracts import AttentionOptions, BlockInputs
from memo.attention.recorded import RecordedKernel
from offload import TensorStore

_MAX_MASKS = 8
"""As for SDPA's bands."""


class FlexKernel(RecordedKernel):
    """`flex_attention` on one block, compiled unless another function is given."""

    name = "flex"

    def __init__(self, store: TensorStore, attention: Callable[..., Any] | None = None) -> None:
        super().__init__(store)
        self._attention = attention
        self._masks: dict[tuple[object, ...], BlockMask] = {}

    def attend(self, inputs: BlockInputs) -> Tensor:
        if self._attention is None:
            self._attention = torch.compile(flex_attention)
        out, aux = self._attention(
            inputs.q,
            inputs.k,
            inputs.v,
            score_mod=_soft_capped(inputs.options),
            block_mask=self._mask(inputs),
            scale=inputs.options.scale,
            enable_gqa=inputs.groups > 1,
            **_with_lse(),
        )
        if inputs.sinks is None:
            result: Tensor = out
            return result
        lse = aux if isinstance(aux, Tensor) else aux.lse
        # lse and sinks are natural logarithms.
        kept = torch.sigmoid(lse - inputs.sinks.view(1, -1, 1).to(lse.dtype))
        scaled: Tensor = (out * kept.unsqueeze(-1)).to(out.dtype)
        return scaled

    def _mask(self, inputs: BlockInputs) -> BlockMask | None:
        block, device = inputs.block, inputs.q.device
        if block.is_open:
            return None
        key = (*block.shape, block.causal, block.window, device)
        if key not in self._masks:
            while len(self._masks) >= _MAX_MASKS:
                del self._masks[next(iter(self._masks))]
            queries, keys, _ = block.shape
            self._masks[key] = create_block_mask(
                _mask_mod(block), None, None, queries, keys, device=str(device)
            )
        return self._masks[key]


def _with_lse() -> Mapping[str, Any]:
    """The argument that asks for the log-sum-exp; torch renamed it in 2.9."""
    request = getattr(flex_module, "AuxRequest", None)
    return {"return_lse": True} if request is None else {"return_aux": request(lse=True)}


def _soft_capped(options: AttentionOptions) -> Callable[..., Tensor] | None:
    cap = options.softcap
    if cap is None:
        return None

    def score_mod(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return score_mod


def _mask_mod(block: Block) -> Callable[..., Tensor]:
    ahead = block.q[0] - block.k[0]

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = k >= 0
        if block.causal:
            seen = seen & (k <= q + ahead)
        if block.window is not None:
            seen = seen & (k > q + ahead - block.window)
        return seen

    return mask_mod
