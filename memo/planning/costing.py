"""Costs of a requested step: its trace, with model states and what ranks send each other.

Scope: putting a `StepCost` together; tracing is `memo.tracing`'s, times are `planner.swap`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from memo.parallel.shares import share_sequence
from memo.planning.collectives import Sharing, exchange_of
from memo.planning.request import PlanRequest
from memo.planning.states import (
    Optimizer,
    StateChoice,
    gradient_share,
    resident_bytes,
    shared_bytes,
    states_of,
)
from memo.tracing import trace_step
from planner.contracts import LayerRun, Stored, Tier, Workload
from planner.swap.contracts import StepCost
from planner.swap.costs import Exchange, Extras, step_cost
from planner.trace import Phase, StepTrace


def traced(
    request: PlanRequest, *, tile_tokens: int | None = None, stored: Stored = Stored.BEFORE
) -> StepTrace:
    """The share of a rank of those with the most tokens.

    Raises:
        MemoError: for a model that cannot be traced.
    """
    return trace_step(
        request.config,
        tokens=local_tokens(request),
        batch=request.batch,
        tile_tokens=tile_tokens or request.tile_tokens,
        dtype=request.torch_dtype,
        device_kind=request.node.device_kind,
        train=request.train,
        sequence_parallel=request.sequence_parallel,
        total_tokens=request.tokens,
        stored=stored,
    )


def local_tokens(request: PlanRequest) -> int:
    """Of each sequence, on the rank with the most."""
    return share_sequence(request.tokens, request.sequence_parallel).tokens[0]


@dataclass(frozen=True, slots=True)
class Costing:
    """What a step costs with model states as chosen; `slowness` as `planner.swap.costs.Extras`;
    empty: the request's. `stored`: for attention's backward.
    """

    request: PlanRequest
    choice: StateChoice
    slowness: Mapping[Phase, float] = field(default_factory=dict)
    stored: Stored = Stored.BEFORE

    def cost(self, trace: StepTrace) -> StepCost:
        """Of the step, traced with as much stored."""
        cost = step_cost(trace, self.request.node.hardware, self._extras(trace))
        sharing = Sharing(self.request.node.hardware, self.choice, self.request.ranks)
        layers = {layer.name: layer for layer in trace.layers}
        costs = {layer.name: layer for layer in cost.layers}
        waited = {name: sharing.waited(layers[name], costs[name]) for name in costs}
        return replace(cost, layers=tuple(waited[layer.name] for layer in cost.layers))

    def optimizer(self, trace: StepTrace) -> Optimizer:
        """Its update at the step's end."""
        return Optimizer(
            self.request.node.hardware,
            self.choice,
            trace.trainable,
            trace.parameters,
            self.request.ranks,
            self.dtype_bytes,
        )

    def gradient_share(self, trace: StepTrace) -> float:
        """The part of its gradients that a rank keeps on its device."""
        states = states_of(self.request, trace, self.choice)
        return gradient_share(trace, states, self.dtype_bytes)

    def resident_device_bytes(self, trace: StepTrace) -> int:
        """What is on the device throughout."""
        return resident_bytes(trace, states_of(self.request, trace, self.choice))[Tier.DEVICE]

    def exchanges(self, trace: StepTrace) -> dict[str, Exchange]:
        """What a rank sends around the core of a layer that runs tile by tile, by class."""
        return {
            layer.name: exchange_of(
                self.request.config,
                tokens=trace.tokens,
                batch=trace.batch,
                ranks=self.request.sequence_parallel,
                dtype_bytes=self.dtype_bytes,
                layer=trace.order.index(layer.name),
                stored=self.stored,
            )
            for layer in trace.layers
            if layer.reason is None
        }

    @property
    def dtype_bytes(self) -> int:
        return self.request.torch_dtype.itemsize

    def workload(self, trace: StepTrace) -> Workload:
        """What is planned, as the plan names it."""
        request = self.request
        return Workload(
            model=request.name,
            layers=_runs(trace),
            parameters=trace.parameters,
            tokens=request.tokens,
            batch=request.batch,
            dtype=request.dtype,
            train=request.train,
            zero=self.choice.zero,
            offload_optimizer=self.choice.offload_optimizer,
            ranks=request.ranks,
            sequence_parallel=request.sequence_parallel,
        )

    def _extras(self, trace: StepTrace) -> Extras:
        states, optimizer = states_of(self.request, trace, self.choice), self.optimizer(trace)
        resident = resident_bytes(trace, states)
        return Extras(
            resident_bytes={
                **resident,
                Tier.DEVICE: resident[Tier.DEVICE] + shared_bytes(trace),
            },
            optimizer_s=optimizer.seconds,
            optimizer_lanes_s=optimizer.lanes_s,
            gradient_share=gradient_share(trace, states, self.dtype_bytes),
            exchange=self.exchanges(trace),
            stored=self.stored,
            slowness=self.slowness or self.request.slowness,
        )


def _runs(trace: StepTrace) -> tuple[LayerRun, ...]:
    runs: list[LayerRun] = []
    for name in trace.order:
        if runs and runs[-1].layer_class == name:
            runs[-1] = replace(runs[-1], count=runs[-1].count + 1)
        else:
            runs.append(LayerRun(layer_class=name, count=1))
    return tuple(runs)
