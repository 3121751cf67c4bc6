"""The simulated transfer engine against the runtime's own, on the same calls: what is handed back,
what is moved, and how much is in flight.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from offload import Lane as RuntimeLane
from offload import TensorStore
from offload import Tier as RuntimeTier
from offload.contracts import Turn as RuntimeTurn
from offload.store import Ticket
from planner.contracts import Lane, Tier
from planner.schedule.lanes import Compute, LaneServer, QueueingLane
from planner.schedule.memory import Memory
from planner.schedule.parcels import Parcel, Turn
from planner.schedule.staging import Staging
from planner.schedule.transfers import Transfers

Layers = list[list[tuple[int, Turn]]]
"""By layer, the parcels that its forward saves: bytes, and when backward wants them."""

_TURNS = {
    Turn.LAYER: RuntimeTurn.LAYER,
    Turn.POST: RuntimeTurn.POST,
    Turn.PRE: RuntimeTurn.PRE,
}


@dataclass(frozen=True)
class Counts:
    """What both engines count."""

    forwarded_bytes: int
    written_bytes: int
    landed_bytes: int
    in_flight_peak_bytes: int


def _layers(rng: random.Random) -> Layers:
    """x and o, then tiles' parts, all of them multiples of what the host's pool aligns to."""
    result = []
    for _ in range(rng.randint(1, 6)):
        parcels = [(512 * rng.randint(1, 20), Turn.LAYER) for _ in range(2)]
        for _ in range(rng.randint(0, 5)):
            parcels += [(512 * rng.randint(1, 30), turn) for turn in (Turn.PRE, Turn.POST)]
        result.append(parcels)
    return result


def _wanted(layer: list[tuple[int, Turn]]) -> list[int]:
    return sorted(range(len(layer)), key=lambda index: layer[index][1])


def _simulated(layers: Layers, window: int) -> Counts:
    compute, memory = Compute(), Memory({})
    lanes = {lane: LaneServer(lane, 1e6) for lane in Lane}
    writes = QueueingLane(lanes[Lane.SSD_WRITE])
    staging = Staging(compute, memory, writes, lanes[Lane.SSD_READ], window)
    d2h, h2d = lanes[Lane.D2H], lanes[Lane.H2D]
    engine = Transfers(compute, memory, d2h, h2d, staging, window)
    saved: list[list[Parcel]] = []
    for layer in layers:
        saved.append([engine.save(n, Tier.HOST, turn, is_counted=True) for n, turn in layer])
        engine.close_group()
    engine.turn_round()
    for layer, parcels in reversed(list(zip(layers, saved, strict=True))):
        for index in _wanted(layer):
            engine.load(parcels[index])
            engine.drop(parcels[index])
        engine.sweep()
    return Counts(engine.forwarded_bytes, d2h.moved_bytes, h2d.moved_bytes, engine.peak_bytes)


@dataclass
class _Run:
    """The runtime's store, driven by the same calls."""

    window: int
    store: TensorStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = TensorStore(in_flight_bytes=self.window)

    def of(self, layers: Layers) -> Counts:
        saved: list[list[Ticket | None]] = []
        for layer in layers:
            saved.append([self._put(size, turn) for size, turn in layer])
            self.store.close_group()
        for layer, tickets in reversed(list(zip(layers, saved, strict=True))):
            for index in _wanted(layer):
                ticket = tickets[index]
                assert ticket is not None
                self._check(self.store.get(ticket), layer[index][0])
                tickets[index] = ticket = None
            self.store.sweep()
        host = self.store.hosts[torch.device("cpu")]
        host.streams.synchronize()
        self.store.sweep()
        meter = host.meter
        moved = {lane: meter.counts[lane].moved_bytes for lane in RuntimeLane}
        return Counts(
            meter.forwarded_bytes,
            moved[RuntimeLane.D2H],
            moved[RuntimeLane.H2D],
            meter.in_flight_peak_bytes,
        )

    def _put(self, size_bytes: int, turn: Turn) -> Ticket:
        tensor = torch.full((size_bytes,), size_bytes % 251, dtype=torch.uint8)
        return self.store.put([tensor], RuntimeTier.HOST, _TURNS[turn])

    def _check(self, tensors: tuple[Tensor, ...], size_bytes: int) -> None:
        assert tensors[0].numel() == size_bytes
        assert int(tensors[0][-1]) == size_bytes % 251


@pytest.mark.parametrize("seed", range(25))
def test_the_runtime_does_what_was_simulated(seed: int) -> None:
    rng = random.Random(seed)
    layers = _layers(rng)
    largest = max(size for layer in layers for size, _ in layer)
    total = sum(size for layer in layers for size, _ in layer)
    window = rng.choice([largest, total // 5 + largest, total // 2 + largest, 2 * total])
    assert _simulated(layers, window) == _Run(window).of(layers)
