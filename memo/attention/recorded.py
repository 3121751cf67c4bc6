"""Kernels that are differentiable functions: their own backward is used, with q, k, v and o left
out of what autograd holds between the two directions.

Scope: `RecordedKernel`, the part that such kernels share. What is called stands in `sdpa.py`,
    `flash.py`, `varlen.py` and `flex.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from memo.attention.contracts import BlockInputs, HeadGradients
from offload import (
    CoreState,
    MemoError,
    Outlet,
    Recording,
    TensorStore,
    Tier,
    Turn,
    inlet,
    run_backward,
)
from offload.contracts import nbytes


@dataclass(slots=True)
class RecordedAttention:
    """A block's graph without q, k, v and o."""

    recording: Recording
    outlet: Outlet
    grads: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return self.recording.nbytes


class RecordedKernel(ABC):
    """A kernel made of a differentiable function on one block; see
    `memo.attention.contracts.Kernel`.
    """

    name: str

    def __init__(self, store: TensorStore) -> None:
        self._store = store

    @abstractmethod
    def attend(self, inputs: BlockInputs) -> Tensor:
        """`o` as [batch, heads, queries, v_head_dim], differentiable."""

    def constants(self, inputs: BlockInputs) -> tuple[Tensor, ...]:
        """Tensors that many blocks share, so that none stores them."""
        return ()

    def as_saved(self, o: Tensor) -> Tensor:
        """`o` with the dims under which the function saves it for backward, in any order."""
        return o

    def forward(
        self, inputs: BlockInputs, tier: Tier | None
    ) -> tuple[Tensor, RecordedAttention | None]:
        v_dim = inputs.v.shape[-1]
        inputs = _padded(inputs)
        if tier is None:
            return self.attend(inputs)[..., :v_dim], None
        named = _named(inputs)
        grads: dict[str, Tensor] = {}
        constants = self.constants(inputs)
        recording = Recording(self._store, tier, named, constants, turn=Turn.CORE)
        with torch.enable_grad(), recording.recording():
            ends = {name: _delivering(tensor, grads, name) for name, tensor in named.items()}
            q, k, v = (ends[name] for name in ("q", "k", "v"))
            out = self.attend(replace(inputs, q=q, k=k, v=v, sinks=ends.get("sinks")))
            outlet = Outlet.of(out)
        recording.alias(self.as_saved(out.detach()), "o")
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
        with state.recording.bound({**_named(inputs), "o": self.as_saved(o)}):
            run_backward([state.outlet], [grad_o], keep_graph=False)
        grads = state.grads
        sinks = grads.pop("sinks", None)
        return HeadGradients(grads.pop("q"), grads.pop("k"), grads.pop("v")[..., :v_dim], sinks)


def _delivering(tensor: Tensor, grads: dict[str, Tensor], name: str) -> Tensor:
    return inlet(tensor, lambda grad: grads.update({name: grad}))


def _named(inputs: BlockInputs) -> dict[str, Tensor]:
    named = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    return named if inputs.sinks is None else {**named, "sinks": inputs.sinks}


def _padded(inputs: BlockInputs) -> BlockInputs:
    # Kernels that keep no [S, S] want one head size for all (DeepSeek's MLA has a smaller one for
    # v). Zeros in v give zeros in o, so the result does not change by a bit.
    missing = inputs.q.shape[-1] - inputs.v.shape[-1]
    return replace(inputs, v=functional.pad(inputs.v, (0, missing))) if missing else inputs


def dense(heads: Tensor) -> Tensor:
    """As projections write them, with nothing between rows: of tokens out of several sequences, or
    of a part of the heads, a copy.
    """
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


def _refuse_quadratic(recording: Recording, inputs: BlockInputs) -> None:
    # A log-sum-exp is a few bytes per query and head; what is larger than q, k and v together is a
    # matrix of scores.
    allowed = 4 * sum(map(nbytes, _named(inputs).values())) + (1 << 20)
    if recording.nbytes > allowed:
        raise MemoError(
            f"attention kept {recording.nbytes:,} bytes for a block of {inputs.q.shape[2]:,} "
            f"queries: no kernel without a matrix of scores takes {inputs.q.dtype} heads of "
            f"{inputs.q.shape[-1]} on {inputs.q.device.type}"
        )
