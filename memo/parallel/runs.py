"""Heads that don't come in equal groups: a core for each run of kv heads that do.

Scope: `RunsCore`. A rank's share may begin or end within the query heads of a kv head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from memo.parallel.contracts import HeadRun
from offload import Core, CoreCall, CoreEnd, CoreState, Tier


@dataclass(frozen=True, slots=True)
class RunStates:
    """The state of every run, in order."""

    states: tuple[CoreState, ...]

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self.states)


@dataclass(frozen=True, slots=True)
class RunsCore:
    """`core` on every run of a call's heads; see `offload.Core`."""

    core: Core
    runs: tuple[HeadRun, ...]

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, CoreState | None]:
        outs, states = [], []
        for part in self._parts(call):
            o, state = self.core.forward(part, tier)
            outs.append(o)
            if state is not None:
                states.append(state)
        return torch.cat(outs, dim=2), None if tier is None else RunStates(tuple(states))

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        assert isinstance(end.state, RunStates)
        heads: list[tuple[Tensor, ...]] = []
        extras: list[tuple[Tensor | None, ...]] = []
        parts = zip(self.runs, self._parts(call), end.state.states, strict=True)
        for run, part, state in parts:
            o, grad_o = (t[:, :, slice(*run.q)] for t in (end.o, end.grad_o))
            grads = self.core.backward(part, CoreEnd(o=o, grad_o=grad_o, state=state))
            heads.append(grads[0])
            extras.append(grads[1])
        joined = tuple(torch.cat(grads, dim=1) for grads in zip(*heads, strict=True))
        return joined, tuple(_joined_or_none(grads) for grads in zip(*extras, strict=True))

    def _parts(self, call: CoreCall) -> Iterator[CoreCall]:
        q, k, v = call.heads
        for run in self.runs:
            kv = slice(*run.kv)
            yield CoreCall(
                heads=(q[:, slice(*run.q)], k[:, kv], v[:, kv]),
                extras=tuple(extra[slice(*run.q)] for extra in call.extras),
                options=call.options,
                is_own=call.is_own,
            )


def _joined_or_none(grads: tuple[Tensor | None, ...]) -> Tensor | None:
    found = [grad for grad in grads if grad is not None]
    return torch.cat(found) if found else None
