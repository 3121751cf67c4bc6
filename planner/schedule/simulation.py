"""A training step of a swap plan on the clock: forward, loss, backward, optimizer.

Scope: the order of compute, as the runtime's layers run (`offload/forward.py`, `backward.py`), and
the memory that goes with it. Times are exact for servers that take their work in order, so no queue
of events is needed: everything is known when it is asked for.

What is live on the device: what is resident; in a segment, its live bytes; what kept tiles, x and o
of other layers and gradients take; and what is in flight. A tile that is stored counts from the
start of its run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from planner.contracts import Lane, LayerSwap, Placement, SwapPlan, Tier
from planner.schedule.contracts import Schedule
from planner.schedule.lanes import Compute, LaneServer, QueueingLane
from planner.schedule.memory import Memory
from planner.schedule.parcels import Parcel, Turn
from planner.schedule.staging import Staging
from planner.schedule.transfers import Transfers
from planner.swap.contracts import LayerCost, PartCost, Rates, SegmentBytes, StepCost
from planner.swap.groups import spread

_TIER = {Placement.KEEP: Tier.DEVICE, Placement.HOST: Tier.HOST, Placement.SSD: Tier.SSD}


def simulate(cost: StepCost, rates: Rates, plan: SwapPlan) -> Schedule:
    """Run one step.

    Raises:
        ValueError: for a plan of another number of layers or tiles than `cost` has, one that stores
            something else for attention, or one that uses an SSD that `rates` does not have.
    """
    if plan.stored is not cost.stored:
        raise ValueError(f"plan has stored={plan.stored}: takes {cost.stored}, as the costs")
    if len(plan.layers) != len(cost.layers):
        raise ValueError(f"plan has {len(plan.layers)} layers: takes {len(cost.layers)}")
    for index, (layer, swap) in enumerate(zip(cost.layers, plan.layers, strict=True)):
        if swap.tile_count != layer.tiles:
            raise ValueError(
                f"plan's layer {index} has {swap.tile_count} tiles: takes {layer.tiles}"
            )
        if not rates.has_ssd and (Tier.SSD in (swap.x, swap.o) or swap.share(Placement.SSD)):
            raise ValueError(f"plan's layer {index} uses the SSD: rates have none")
    return _Simulation(cost, rates, plan).run()


@dataclass(slots=True)
class _Stored:
    """What one layer's forward left elsewhere: x, o, what lies there for the core alone, and tiles'
    parcels by index and turn.
    """

    x: Parcel | None = None
    o: Parcel | None = None
    core: Parcel | None = None
    tiles: dict[tuple[int, Turn], Parcel] = field(default_factory=dict)


class _Simulation:
    def __init__(self, cost: StepCost, rates: Rates, plan: SwapPlan) -> None:
        self.cost, self.rates, self.plan = cost, rates, plan
        self.compute, self.memory = Compute(), Memory(cost.resident_bytes)
        self.lanes = {lane: LaneServer(lane, rates.of(lane)) for lane in Lane}
        self.writes = QueueingLane(self.lanes[Lane.SSD_WRITE])
        limit_bytes = plan.in_flight_bytes
        staging = Staging(
            self.compute, self.memory, self.writes, self.lanes[Lane.SSD_READ], limit_bytes
        )
        d2h, h2d = self.lanes[Lane.D2H], self.lanes[Lane.H2D]
        self.transfers = Transfers(self.compute, self.memory, d2h, h2d, staging, limit_bytes)
        self.stored = [_Stored() for _ in plan.layers]
        self.recompute_s = 0.0

    def run(self) -> Schedule:
        cost = self.cost
        layers = list(zip(cost.layers, self.plan.layers, self.stored, strict=True))
        self._part("embedding forward", cost.embedding.forward_s, cost.embedding.forward_live_bytes)
        for layer, swap, stored in layers:
            with self._marked(f"{layer.name} forward"):
                self._forward(layer, swap, stored)
        self._head(cost.head)
        self.transfers.turn_round()
        for layer, swap, stored in reversed(layers):
            with self._marked(f"{layer.name} backward"):
                self._backward(layer, swap, stored)
        self.transfers.sweep()
        self._end()
        return self._schedule()

    # ---- the step's ends ----

    def _part(self, name: str, duration_s: float, live_bytes: int) -> None:
        with self._marked(name), self._live(live_bytes):
            self.compute.run(duration_s)

    def _head(self, head: PartCost) -> None:
        self._part("head forward", head.forward_s, head.forward_live_bytes)
        self._part("head backward", head.backward_s, head.backward_live_bytes)
        self.memory.take(Tier.DEVICE, self.compute.now_s, head.gradient_bytes)

    def _end(self) -> None:
        embedding, cost = self.cost.embedding, self.cost
        self._part("embedding backward", embedding.backward_s, embedding.backward_live_bytes)
        self.memory.take(Tier.DEVICE, self.compute.now_s, embedding.gradient_bytes)
        self._part("optimizer", cost.optimizer_s, 0)
        self.writes.finish_all()

    # ---- forward ----

    def _forward(self, cost: LayerCost, swap: LayerSwap, stored: _Stored) -> None:
        stored.x = self._save_skeletal(cost.x_bytes, swap.x)
        with self._live(cost.forward_live.pre_bytes):
            self.compute.run(cost.forward.pre_s)
        with self._live(cost.forward_live.core_bytes):
            self.compute.run(cost.forward.core_s)
        stored.core = self._save_of_core(cost.o_core_bytes, swap.o)
        stored.o = self._save_skeletal(cost.o_bytes - cost.o_core_bytes, swap.o)
        for index, placement in enumerate(spread(swap.tiles)):
            with self._live(_tile_live_bytes(cost, cost.forward_live, index, placement)):
                self._forward_tile(cost, stored, index, placement)
        self.memory.take(Tier.DEVICE, self.compute.now_s, _kept_of_layer_bytes(cost, swap))
        self.transfers.close_group()

    def _save_skeletal(self, size_bytes: int, tier: Tier) -> Parcel | None:
        if tier is Tier.DEVICE or not size_bytes:
            return None
        return self.transfers.save(size_bytes, tier, Turn.LAYER, is_counted=False)

    def _save_of_core(self, size_bytes: int, tier: Tier) -> Parcel | None:
        """Nothing of the layer's forward wants it any more."""
        self.memory.take(Tier.DEVICE, self.compute.now_s, size_bytes)
        if tier is Tier.DEVICE or not size_bytes:
            return None
        return self.transfers.save(size_bytes, tier, Turn.CORE, is_counted=True)

    def _forward_tile(
        self, cost: LayerCost, stored: _Stored, index: int, placement: Placement
    ) -> None:
        tier, start_s = _TIER.get(placement), self.compute.now_s
        self.compute.run(cost.forward.post_s * _weight(cost, index))
        if tier is None:
            return
        for turn in (Turn.PRE, Turn.POST):
            size_bytes = _tile_bytes(cost, index, turn)
            self.memory.take(Tier.DEVICE, start_s, size_bytes)
            if tier is not Tier.DEVICE and size_bytes:
                parcel = self.transfers.save(size_bytes, tier, turn, is_counted=True)
                stored.tiles[index, turn] = parcel

    # ---- backward ----

    def _backward(self, cost: LayerCost, swap: LayerSwap, stored: _Stored) -> None:
        self._load_skeletal(stored.x)
        self._load_skeletal(stored.o)
        self.memory.give_back(Tier.DEVICE, self.compute.now_s, _kept_of_layer_bytes(cost, swap))
        placements = spread(swap.tiles)
        recompute, backward = cost.recompute, cost.backward
        live = cost.backward_live.of(is_stored=Placement.RECOMPUTE not in placements)
        seconds = (recompute.post_s, backward.post_s)
        self._backward_tiles(cost, stored, placements, Turn.POST, seconds)
        self._load_skeletal(stored.core)
        self.memory.give_back(Tier.DEVICE, self.compute.now_s, _kept_of_core_bytes(cost, swap))
        with self._live(live.core_bytes):
            self.compute.run(backward.core_s)
        with self._live(live.pre_bytes):
            seconds = (recompute.pre_s, backward.pre_s)
            self._backward_tiles(cost, stored, placements, Turn.PRE, seconds)
        self.memory.take(Tier.DEVICE, self.compute.now_s, cost.gradient_bytes)
        self.transfers.sweep()

    def _load_skeletal(self, parcel: Parcel | None) -> None:
        """From here on it lives with the layer."""
        if parcel is not None:
            self.transfers.load(parcel)
            self.transfers.drop(parcel)

    def _backward_tiles(
        self,
        cost: LayerCost,
        stored: _Stored,
        placements: list[Placement],
        turn: Turn,
        seconds: tuple[float, float],
    ) -> None:
        for index, placement in enumerate(placements):
            live_bytes = _tile_live_bytes(cost, cost.backward_live, index, placement)
            with self._live(live_bytes if turn is Turn.POST else 0):
                self._backward_tile(
                    cost, stored.tiles.get((index, turn)), index, placement, seconds
                )
            if placement is Placement.KEEP and turn is Turn.PRE:  # its graph is whole until then
                size_bytes = sum(_tile_bytes(cost, index, t) for t in (Turn.POST, Turn.PRE))
                self.memory.give_back(Tier.DEVICE, self.compute.now_s, size_bytes)

    def _backward_tile(
        self,
        cost: LayerCost,
        parcel: Parcel | None,
        index: int,
        placement: Placement,
        seconds: tuple[float, float],
    ) -> None:
        (again_s, backward_s), weight = seconds, _weight(cost, index)
        if placement is Placement.RECOMPUTE:
            self.compute.run(again_s * weight)
            self.recompute_s += again_s * weight
        if parcel is not None:
            self.transfers.load(parcel)
            self.memory.take(Tier.DEVICE, self.compute.now_s, parcel.size_bytes)
        self.compute.run(backward_s * weight)
        if parcel is not None:
            self.memory.give_back(Tier.DEVICE, self.compute.now_s, parcel.size_bytes)
            self.transfers.drop(parcel)

    # ---- memory, marks and sums ----

    @contextmanager
    def _live(self, size_bytes: int) -> Iterator[None]:
        self.memory.take(Tier.DEVICE, self.compute.now_s, size_bytes)
        yield
        self.memory.give_back(Tier.DEVICE, self.compute.now_s, size_bytes)

    @contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        start_s = self.compute.now_s
        yield
        self.compute.mark(name, start_s)

    def _schedule(self) -> Schedule:
        step_s, lanes = self.compute.now_s, self.lanes
        spans = [*self.compute.spans, *(span for lane in lanes.values() for span in lane.spans)]
        return Schedule(
            step_s=step_s,
            compute_s=self.compute.busy_s,
            recompute_s=self.recompute_s,
            exposed_s=dict(self.compute.exposed_s),
            busy_s={lane: server.busy_s for lane, server in lanes.items()},
            moved_bytes={lane: server.moved_bytes for lane, server in lanes.items()},
            forwarded_bytes=self.transfers.forwarded_bytes,
            in_flight_peak_bytes=self.transfers.peak_bytes,
            mfu=self.cost.model_flops / (step_s * self.rates.peak_flops_per_s) if step_s else 0.0,
            memory=self.memory.lines(),
            spans=tuple(sorted(spans, key=lambda span: (span.start_s, -span.stop_s))),
        )


def _kept_of_layer_bytes(cost: LayerCost, swap: LayerSwap) -> int:
    """Bytes of x and o that stay on the device, without those for the core alone."""
    x_bytes = cost.x_bytes if swap.x is Tier.DEVICE else 0
    return x_bytes + (cost.o_bytes - cost.o_core_bytes if swap.o is Tier.DEVICE else 0)


def _kept_of_core_bytes(cost: LayerCost, swap: LayerSwap) -> int:
    return cost.o_core_bytes if swap.o is Tier.DEVICE else 0


def _tile_live_bytes(cost: LayerCost, live: SegmentBytes, index: int, placement: Placement) -> int:
    """Of `post` while a tile of this placement runs."""
    own = live.of(is_stored=placement is not Placement.RECOMPUTE)
    return own.tile_bytes(is_last=index == cost.tiles - 1 > 0)


def _weight(cost: LayerCost, index: int) -> float:
    """A tile's share of its layer."""
    own = cost.last_tile if index == cost.tiles - 1 else 1.0
    return own / (cost.tiles - 1 + cost.last_tile)


def _tile_bytes(cost: LayerCost, index: int, turn: Turn) -> int:
    """What a stored tile has for one half of backward."""
    full = cost.tile_pre_bytes if turn is Turn.PRE else cost.tile_bytes - cost.tile_pre_bytes
    return round(full * cost.last_tile) if index == cost.tiles - 1 else full
