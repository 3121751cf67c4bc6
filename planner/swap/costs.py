"""Costs from a trace and hardware: operations become seconds, storages become bytes of segments.

Scope: one rank's share. A rank has its own device and lanes to the host; the node's host memory and
disks it shares with the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from planner.contracts import Tier, check_at_least
from planner.hardware.contracts import Hardware
from planner.swap.contracts import (
    Budgets,
    LayerCost,
    PartCost,
    Rates,
    SegmentBytes,
    SegmentTimes,
    StepCost,
)
from planner.trace.contracts import (
    Block,
    Kind,
    LayerTrace,
    OperationCost,
    PartTrace,
    Pass,
    Segment,
    StepTrace,
)
from planner.trace.live import live_bytes, need_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Bytes that one rank sends to its peers in one layer's core, in each direction of the step
    (sequence parallelism's all-to-alls). Their time is added to the core's.
    """

    forward_bytes: int = 0
    backward_bytes: int = 0

    def __post_init__(self) -> None:
        check_at_least(0, forward_bytes=self.forward_bytes, backward_bytes=self.backward_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """What a trace does not know. `resident_bytes`: model states by tier, parameters and inputs
    included; None: the trace's parameters, buffers and inputs. `gradient_share`: what part of its
    gradients a rank keeps on its device once they are made (ZeRO-2 and 3: one of all ranks; 0 where
    they go to the host at once). `exchange` by layer class.
    """

    resident_bytes: Mapping[Tier, int] | None = None
    optimizer_s: float = 0.0
    optimizer_live_bytes: int = 0
    gradient_share: float = 1.0
    exchange: Mapping[str, Exchange] = field(default_factory=dict)


def rates_of(hardware: Hardware, dtype: str, *, sharing: int | None = None) -> Rates:
    """A rank's lanes when `sharing` ranks (None: one a GPU) use the node's disks at once."""
    ranks, disks, link = sharing or hardware.gpus, hardware.disks, hardware.efficiency.link
    return Rates(
        d2h_bytes_per_s=hardware.d2h_bytes_per_s * link,
        h2d_bytes_per_s=hardware.h2d_bytes_per_s * link,
        ssd_write_bytes_per_s=disks.total_write_bytes_per_s / ranks if disks else 0.0,
        ssd_read_bytes_per_s=disks.total_read_bytes_per_s / ranks if disks else 0.0,
        peak_flops_per_s=hardware.peak(dtype),
    )


def budgets_of(
    hardware: Hardware, *, sharing: int | None = None, in_flight_bytes: int | None = None
) -> Budgets:
    """A rank's share of the node's memory and disks."""
    ranks, disks = sharing or hardware.gpus, hardware.disks
    return Budgets(
        device_bytes=hardware.device_bytes,
        host_bytes=hardware.host_bytes // ranks,
        ssd_bytes=disks.total_bytes // ranks if disks else 0,
        in_flight_bytes=in_flight_bytes,
    )


def step_cost(trace: StepTrace, hardware: Hardware, extras: Extras | None = None) -> StepCost:
    """A traced step's costs.

    Raises:
        ValueError: when the hardware has no rate for the trace's dtype, or an exchange is asked for
            and it has no link.
    """
    extras, clock = extras or Extras(), Clock(hardware, trace.dtype)
    classes = {layer.name: layer_cost(layer, clock, extras) for layer in trace.layers}
    resident = {Tier.DEVICE: trace.base_bytes}
    hidden_bytes = trace.layers[-1].x_bytes
    return StepCost(
        tile_tokens=min(layer.tile_tokens for layer in trace.layers),  # whole layers are one tile
        layers=tuple(classes[name] for name in trace.order),
        embedding=_part(trace.embedding, clock, extras, 0),
        head=_part(trace.head, clock, extras, hidden_bytes),
        optimizer_s=extras.optimizer_s,
        optimizer_live_bytes=extras.optimizer_live_bytes,
        resident_bytes=resident if extras.resident_bytes is None else extras.resident_bytes,
        model_flops=model_flops(trace),
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


@dataclass(frozen=True, slots=True)
class Clock:
    """What operations take on one device: as long as its matmul units or its memory are busy,
    whichever is longer (the roofline, Williams et al. 2009).
    """

    hardware: Hardware
    dtype: str

    def seconds(self, operation: OperationCost) -> float:
        """Of one operation."""
        compute_s = operation.flops / (self.hardware.peak(self.dtype) * self._share(operation))
        return max(compute_s, operation.bytes / self.hardware.device_bytes_per_s)

    def by_phase(self, block: Block) -> dict[tuple[Segment, Pass], float]:
        """Of a block, repeats included."""
        sums: dict[tuple[Segment, Pass], float] = defaultdict(float)
        for operation, times in repeated(block):
            sums[operation.segment, operation.direction] += times * self.seconds(operation)
        return sums

    def exchange_s(self, size_bytes: int) -> float:
        """Of bytes that go to peers.

        Raises:
            ValueError: when there are some, and no link.
        """
        if not size_bytes:
            return 0.0
        link = self.hardware.link_bytes_per_s
        if link is None:
            raise ValueError(f"link_bytes_per_s is None: {self.hardware.device} has no peers")
        return size_bytes / (link * self.hardware.efficiency.link)

    def _share(self, operation: OperationCost) -> float:
        efficiency = self.hardware.efficiency
        if operation.segment is not Segment.CORE:
            return efficiency.matmul
        if operation.direction is Pass.BACKWARD:
            return efficiency.attention_backward
        return efficiency.attention_forward


def layer_cost(layer: LayerTrace, clock: Clock, extras: Extras) -> LayerCost:
    """Of one layer. One that runs whole is one tile whose core is no segment of its own."""
    exchange = extras.exchange.get(layer.name, Exchange())
    forward = clock.by_phase(layer.recomputed.forward)
    backward = clock.by_phase(layer.recomputed.backward)
    last_tokens = layer.tokens - (layer.tiles - 1) * layer.tile_tokens
    return LayerCost(
        name=layer.name,
        tiles=layer.tiles,
        last_tile=last_tokens / layer.tile_tokens if layer.tiles > 1 else 1.0,
        forward=_times(forward, Pass.FORWARD, clock.exchange_s(exchange.forward_bytes)),
        backward=_times(backward, Pass.BACKWARD, clock.exchange_s(exchange.backward_bytes)),
        recompute=_recompute(backward),
        x_bytes=layer.x_bytes,
        o_bytes=layer.o_bytes,
        tile_bytes=layer.stored_bytes,
        gradient_bytes=round(layer.gradient_bytes * extras.gradient_share),
        forward_live=_live(layer.recomputed.forward, layer.x_bytes),
        # x, o and the gradient of y, which is as large as x, are there when it begins.
        backward_live=_live(layer.recomputed.backward, 2 * layer.x_bytes + layer.o_bytes),
    )


def repeated(block: Block) -> Iterator[tuple[OperationCost, int]]:
    """Every traced operation, and how many it stands for."""
    times = [1] * len(block.operations)
    for repeat in block.repeats:
        for index in range(repeat.start, repeat.stop):
            times[index] += repeat.times
    yield from zip(block.operations, times, strict=True)


def _times(
    sums: Mapping[tuple[Segment, Pass], float], direction: Pass, exchange_s: float = 0.0
) -> SegmentTimes:
    def of(*segments: Segment) -> float:
        return sum(sums.get((segment, direction), 0.0) for segment in segments)

    return SegmentTimes(
        pre_s=of(Segment.PRE),
        core_s=of(Segment.CORE) + exchange_s,
        post_s=of(*(s for s in Segment if s not in (Segment.PRE, Segment.CORE))),
    )


def _recompute(sums: Mapping[tuple[Segment, Pass], float]) -> SegmentTimes:
    """What a core runs again comes before its backward."""
    times = _times(sums, Pass.RECOMPUTE)
    return SegmentTimes(pre_s=times.pre_s, post_s=times.core_s + times.post_s)


def _part(part: PartTrace, clock: Clock, extras: Extras, start_bytes: int) -> PartCost:
    """`start_bytes` are there when the part begins, and go with it."""
    forward, backward = need_of(part.forward), need_of(part.backward)
    allocations = (*part.forward.allocations, *part.backward.allocations)
    gradient_bytes = sum(a.size_bytes for a in allocations if _is_left(a.kind, a.freed))
    held_bytes = start_bytes + max(0, forward.left_bytes)
    return PartCost(
        forward_s=sum(clock.by_phase(part.forward).values()),
        backward_s=sum(clock.by_phase(part.backward).values()),
        forward_live_bytes=start_bytes + forward.peak_bytes,
        backward_live_bytes=held_bytes + backward.peak_bytes,
        gradient_bytes=round(gradient_bytes * extras.gradient_share),
    )


def _is_left(kind: Kind, freed: int | None) -> bool:
    return kind is Kind.GRADIENT and freed is None


def _live(block: Block, start_bytes: int) -> SegmentBytes:
    """The most that is live in each segment; `start_bytes` of it when the block begins."""
    peaks: dict[Segment, int] = defaultdict(int)
    for operation, live in _expanded(block):
        peaks[operation.segment] = max(peaks[operation.segment], start_bytes + live)
    whole = (peaks[segment] for segment in Segment if segment not in (Segment.PRE, Segment.CORE))
    return SegmentBytes(
        pre_bytes=peaks[Segment.PRE],
        core_bytes=peaks[Segment.CORE],
        post_bytes=max(whole),
    )


def _expanded(block: Block) -> Iterator[tuple[OperationCost, int]]:
    """Traced operations with what is live during them beyond the start; those of a tile that stands
    for others twice, as in the first and as in the last of these.
    """
    during, before = live_bytes(block)
    shift = at = 0
    for repeat in block.repeats:
        yield from _shifted(block, during, range(at, repeat.stop), shift)
        shift += repeat.times * (before[repeat.stop] - before[repeat.start])
        yield from _shifted(block, during, range(repeat.start, repeat.stop), shift)
        at = repeat.stop
    yield from _shifted(block, during, range(at, len(during)), shift)


def _shifted(
    block: Block, during: list[int], indices: Iterable[int], shift: int
) -> Iterator[tuple[OperationCost, int]]:
    for index in indices:
        yield block.operations[index], during[index] + shift
