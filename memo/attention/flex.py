"""The kernel of torch's `flex_attention`, for soft-capping and sinks on a GPU (it has no backward
on the CPU).

Scope: its arguments for one block, and compiling it: for every shape anew, since what torch
compiles for sizes that vary fails for some masks (2.11: no kernel for a window of packed documents,
and wrong strides in backward). Sinks come after it: a sink is a key whose value is zero, so it
scales a query's output by exp(lse) / (exp(lse) + exp(sink)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from memo.attention.contracts import BlockInputs
from memo.attention.flex_mask import block_mask_of
from memo.attention.recorded import RecordedKernel, dense
from offload import MemoError, TensorStore

_MAX_MASKS = 8
"""As for SDPA's bands."""

_MOST_SHAPES = 256
"""That are compiled, some seconds each. Torch's own limit is 8, above which it would run what
flex_attention stands for, with a matrix of all scores.
"""

ScoreMod = Callable[..., Tensor]


class FlexKernel(RecordedKernel):
    """`flex_attention` on one block, compiled unless another function is given."""

    name = "flex"

    def __init__(self, store: TensorStore, attention: Callable[..., Any] | None = None) -> None:
        super().__init__(store)
        self._attention = attention
        self._masks: dict[tuple[object, ...], BlockMask] = {}
        self._score_mods: dict[float, ScoreMod] = {}

    def attend(self, inputs: BlockInputs) -> Tensor:
        out, aux = self._flex(
            *(dense(tensor) for tensor in (inputs.q, inputs.k, inputs.v)),
            score_mod=self._score_mod(inputs.options.softcap),
            block_mask=self._mask(inputs),
            scale=inputs.options.scale,
            enable_gqa=inputs.groups > 1,
            # Torch's kernel for few queries finds no block for more than 128 of them times groups.
            kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
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

    def as_saved(self, o: Tensor) -> Tensor:
        """What is compiled wants it as it was made, not as a part of the whole o."""
        return dense(o)

    def _flex(self, *args: Tensor, **kwargs: Any) -> Any:
        """
        Raises:
            MemoError: for more shapes than are compiled.
        """
        if self._attention is None:
            self._attention = torch.compile(flex_attention, dynamic=False)
        limits = {"recompile_limit": _MOST_SHAPES, "fail_on_recompile_limit_hit": True}
        try:
            with torch._dynamo.config.patch(limits):
                return self._attention(*args, **kwargs)
        except FailOnRecompileLimitHit as error:
            raise MemoError(
                f"flex attention was compiled for {_MOST_SHAPES} shapes, and here is another one: "
                "pad sequences to few lengths"
            ) from error

    def _score_mod(self, softcap: float | None) -> ScoreMod | None:
        """One function for each cap: another object might be compiled again."""
        if softcap is None:
            return None
        return self._score_mods.setdefault(softcap, _soft_capped(softcap))

    def _mask(self, inputs: BlockInputs) -> BlockMask | None:
        block, device = inputs.block, inputs.q.device
        if block.is_open:
            return None
        key = (*block.shape, block.causal, block.window, device)
        if key not in self._masks:
            while len(self._masks) >= _MAX_MASKS:
                del self._masks[next(iter(self._masks))]
            self._masks[key] = block_mask_of(block, device)
        return self._masks[key]


def _with_lse() -> Mapping[str, Any]:
    """The argument that asks for the log-sum-exp; torch renamed it in 2.9."""
    request = getattr(flex_module, "AuxRequest", None)
    return {"return_lse": True} if request is None else {"return_aux": request(lse=True)}


def _soft_capped(cap: float) -> ScoreMod:
    def score_mod(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return score_mod
