"""Costs from a trace and hardware: operations become seconds, storages become bytes of segments.

Scope: one rank's share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from planner.contracts import Lane, Stored, Tier, check_at_least
from planner.hardware.contracts import Hardware
from planner.swap.clock import Clock, repeated
from planner.swap.contracts import (
    LayerCost,
    PartCost,
    SegmentBytes,
    SegmentTimes,
    StepCost,
)
from planner.swap.live import live_in
from planner.trace.contracts import (
    Kind,
    LayerTrace,
    PartTrace,
    Pass,
    Phase,
    Segment,
    StepTrace,
)
from planner.trace.live import need_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Bytes that one rank sends to its peers in one layer's core, in each direction of the step
    (sequence parallelism's all-to-alls). Their time is added to the core's; what is sent `beside`
    the core's compute (on a ring) is waited for where it takes longer than that.
    """

    forward_bytes: int = 0
    backward_bytes: int = 0
    forward_beside_bytes: int = 0
    backward_beside_bytes: int = 0

    def __post_init__(self) -> None:
        check_at_least(
            0,
            forward_bytes=self.forward_bytes,
            backward_bytes=self.backward_bytes,
            forward_beside_bytes=self.forward_beside_bytes,
            backward_beside_bytes=self.backward_beside_bytes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """What a trace does not know. `resident_bytes`: model states by tier, parameters and inputs
    included; None: the trace's parameters, buffers and inputs. `optimizer_lanes_s`: as
    `StepCost`'s. `gradient_share`: what part of its
    gradients a rank keeps on its device once they are made (ZeRO-2 and 3: one of all ranks; 0 where
    they go to the host at once). `exchange` by layer class, where `stored` is for attention's
    backward. `slowness`: how many times as long as the hardware's rates say a phase takes, where
    that was measured; 1 elsewhere.
    """

    resident_bytes: Mapping[Tier, int] | None = None
    optimizer_s: float = 0.0
    optimizer_lanes_s: Mapping[Lane, float] = field(default_factory=dict)
    gradient_share: float = 1.0
    exchange: Mapping[str, Exchange] = field(default_factory=dict)
    stored: Stored = Stored.BEFORE
    slowness: Mapping[Phase, float] = field(default_factory=dict)


def step_cost(trace: StepTrace, hardware: Hardware, extras: Extras | None = None) -> StepCost:
    """A traced step's costs.

    Raises:
        ValueError: when the hardware has no rate for the trace's dtype, or an exchange is asked for
            and it has no link.
    """
    extras = extras or Extras()
    clock = Clock(hardware, trace.dtype, extras.slowness)
    passing_bytes = _passing_bytes(trace)
    classes = {
        layer.name: layer_cost(layer, clock, extras, passing_bytes) for layer in trace.layers
    }
    resident = {Tier.DEVICE: trace.base_bytes}
    hidden_bytes = trace.layers[-1].x_bytes
    return StepCost(
        tile_tokens=min(layer.tile_tokens for layer in trace.layers),  # whole layers are one tile
        layers=tuple(classes[name] for name in trace.order),
        embedding=_part("embedding", trace.embedding, clock, extras, 0),
        head=_part("head", trace.head, clock, extras, hidden_bytes, passing_bytes),
        optimizer_s=extras.optimizer_s,
        optimizer_lanes_s=extras.optimizer_lanes_s,
        resident_bytes=resident if extras.resident_bytes is None else extras.resident_bytes,
        model_flops=model_flops(trace),
        stored=extras.stored,
    )


def model_flops(trace: StepTrace) -> float:
    """Forward and backward without anything that is run twice: three times forward for what has
    trainable weights, as PaLM counts (arXiv 2204.02311, appendix B), twice where they are frozen;
    attention only as far as its mask goes. A tile's `post` runs all of the layer but its core, and
    the loss makes its gradients in forward.
    """
    token_wise = 2 + trace.trainable / max(1, trace.parameters)
    classes = {layer.name: layer for layer in trace.layers}
    flops = {
        name: sum(
            op.flops * times * (3 if op.segment is Segment.CORE else token_wise)
            for op, times in repeated(layer.recomputed.forward)
            if op.segment is not Segment.PRE
        )
        for name, layer in classes.items()
    }
    head = (*repeated(trace.head.forward), *repeated(trace.head.backward))
    head_flops = sum(op.flops * times for op, times in head if op.direction is not Pass.RECOMPUTE)
    return sum(flops[name] for name in trace.order) + head_flops


def layer_cost(
    layer: LayerTrace, clock: Clock, extras: Extras, passing_bytes: int = 0
) -> LayerCost:
    """Of one layer. One that runs whole is one tile whose core is no segment of its own.
    `passing_bytes` are live beside it in forward.
    """
    exchange = extras.exchange.get(layer.name, Exchange())
    forward = clock.by_phase(layer.name, layer.recomputed.forward)
    backward = clock.by_phase(layer.name, layer.recomputed.backward)
    last_tokens = layer.tokens - (layer.tiles - 1) * layer.tile_tokens
    forward_live = live_in(layer, Pass.FORWARD, layer.x_bytes + passing_bytes)
    # x, o and the gradient of y, which is as large as x, are there when it begins.
    backward_live = live_in(layer, Pass.BACKWARD, 2 * layer.x_bytes + layer.o_bytes)
    return LayerCost(
        name=layer.name,
        tiles=layer.tiles,
        last_tile=last_tokens / layer.tile_tokens if layer.tiles > 1 else 1.0,
        forward=_times(
            forward,
            Pass.FORWARD,
            clock.exchange_s(exchange.forward_bytes),
            clock.exchange_s(exchange.forward_beside_bytes),
        ),
        backward=_times(
            backward,
            Pass.BACKWARD,
            clock.exchange_s(exchange.backward_bytes),
            clock.exchange_s(exchange.backward_beside_bytes),
        ),
        recompute=_recompute(backward),
        x_bytes=layer.x_bytes,
        o_bytes=layer.o_bytes,
        tile_bytes=layer.stored_bytes,
        tile_pre_bytes=layer.stored_pre_bytes,
        o_core_bytes=layer.o_core_bytes,
        gradient_bytes=round(layer.gradient_bytes * extras.gradient_share),
        forward_live=_less_in_post(forward_live, layer.o_core_bytes),
        backward_live=_less_in_post(backward_live, layer.o_core_bytes),
        is_whole=layer.reason is not None,
    )


def _less_in_post(live: SegmentBytes, size_bytes: int) -> SegmentBytes:
    """Without what is stored for the core alone, which a trace has on the device all the time."""
    if not size_bytes:
        return live
    last_bytes = live.last_bytes
    return replace(
        live,
        post_bytes=max(0, live.post_bytes - size_bytes),
        last_bytes=None if last_bytes is None else max(0, last_bytes - size_bytes),
        stored=None if live.stored is None else _less_in_post(live.stored, size_bytes),
    )


def _times(
    sums: Mapping[tuple[Segment, Pass], float],
    direction: Pass,
    exchange_s: float = 0.0,
    beside_s: float = 0.0,
) -> SegmentTimes:
    def of(*segments: Segment) -> float:
        return sum(sums.get((segment, direction), 0.0) for segment in segments)

    return SegmentTimes(
        pre_s=of(Segment.PRE),
        core_s=max(of(Segment.CORE), beside_s) + exchange_s,
        post_s=of(*(s for s in Segment if s not in (Segment.PRE, Segment.CORE))),
    )


def _recompute(sums: Mapping[tuple[Segment, Pass], float]) -> SegmentTimes:
    """What a core runs again comes before its backward."""
    times = _times(sums, Pass.RECOMPUTE)
    return SegmentTimes(pre_s=times.pre_s, post_s=times.core_s + times.post_s)


def _passing_bytes(trace: StepTrace) -> int:
    """What the model makes before its layers, and lets go after them and before the loss."""
    return sum(a.size_bytes for a in trace.head.forward.allocations if a.kind is Kind.INPUT)


def _part(
    name: str,
    part: PartTrace,
    clock: Clock,
    extras: Extras,
    start_bytes: int,
    passing_bytes: int = 0,
) -> PartCost:
    """`start_bytes` are there when the part begins, and go with it; `passing_bytes` go in its
    forward.
    """
    forward, backward = need_of(part.forward), need_of(part.backward)
    allocations = (*part.forward.allocations, *part.backward.allocations)
    gradient_bytes = sum(a.size_bytes for a in allocations if _is_left(a.kind, a.freed))
    # A weight that is the embedding's too has its gradient in two parts; that of x goes on.
    handed = (a for a in part.backward.allocations if a.kind is Kind.OUTPUT and a.freed is None)
    gradient_bytes += max(0, sum(a.size_bytes for a in handed) - start_bytes)
    held_bytes = start_bytes + max(0, forward.left_bytes + passing_bytes)
    return PartCost(
        forward_s=sum(clock.by_phase(name, part.forward).values()),
        backward_s=sum(clock.by_phase(name, part.backward).values()),
        forward_live_bytes=start_bytes + passing_bytes + forward.peak_bytes,
        backward_live_bytes=held_bytes + backward.peak_bytes,
        gradient_bytes=round(gradient_bytes * extras.gradient_share),
    )


def _is_left(kind: Kind, freed: int | None) -> bool:
    return kind is Kind.GRADIENT and freed is None
