"""Training steps over the double: a stack of toy layers whose tensors go to the host and come back
by lanes that run as late, and in as bad an order, as their events allow.

Scope: building and running; what must hold is said in the tests.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum, auto

import pytest
import torch
from torch import Tensor

from offload import Placement, TensorStore, Tier, recording, run_tiled
from offload.budget import Budget
from offload.host_pool import ALIGNMENT_BYTES
from offload.transfers import HostTier
from tests.offload.toy import Toy, ToyCore, toy_input, toy_params
from tests.races.compute import Compute
from tests.races.disk import DoubleDisk
from tests.races.double import DoubleStreams
from tests.races.pool import PoisoningPool


class Abandoned(Enum):
    """What becomes of a step that ends early in backward: there is none, or it is dropped at once,
    or held through those that are run to their end.
    """

    NONE = auto()
    DROPPED = auto()
    HELD = auto()


class BlindCore(ToyCore):
    """Does not look whether it was given what forward had: a race must get as far as gradients."""

    checks = False


LAYERS, TOKENS, TILE_TOKENS = 3, 7, 3
CPU = torch.device("cpu")

HOST_BYTES = (8 << 10, 12 << 10, 24 << 10)
"""From a sixth of what a step stores to nearly half, and more than the largest parcel's 3 KiB."""

DISK_BYTES = 256 << 10
"""All that a step stores, several times over."""

Grads = list[Tensor | None]


@dataclass
class Schedule:
    """What one run asks for; all of it follows from the seed. Users may train on a stream of their
    own, and not always on the same one. Watched, the double sees every operation of compute;
    unwatched, four times as many schedules run in the same time. Half have a disk.
    """

    seed: int
    placements: tuple[Placement, ...] = field(init=False)
    in_flight_bytes: int | None = field(init=False)
    on_side_stream: tuple[bool, ...] = field(init=False)
    is_watched: bool = field(init=False)
    abandons: Abandoned = field(init=False)
    has_disk: bool = field(init=False)
    skeletal: Tier = field(init=False, default=Tier.HOST)
    host_bytes: int | None = field(init=False, default=None)
    disk_bytes: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        kinds = [Placement.HOST, Placement.HOST, Placement.RECOMPUTE, Placement.KEEP]
        self.placements = tuple(rng.choice(kinds) for _ in range(3))
        self.in_flight_bytes = rng.choice([None, 0, 3000, 20_000, 1 << 20])
        # One step, or two on the same stream or on different ones.
        sides = [(False,), (True,), (False, True), (True, False), (False, False)]
        self.on_side_stream = rng.choice(sides)
        self.is_watched = rng.random() < 0.25
        self.abandons = rng.choice(
            [Abandoned.NONE, Abandoned.NONE, Abandoned.DROPPED, Abandoned.HELD]
        )
        self.has_disk = rng.random() < 0.5
        if self.has_disk:
            self._draw_disk(rng)

    def _draw_disk(self, rng: random.Random) -> None:
        if rng.random() < 0.7:  # else what goes to the disk is what overflows
            kinds = [Placement.HOST, *[Placement.SSD] * 2, Placement.RECOMPUTE, Placement.KEEP]
            self.placements = tuple(rng.choice(kinds) for _ in range(3))
            self.skeletal = rng.choice([Tier.HOST, Tier.SSD])
        self.host_bytes = rng.choice([None, *HOST_BYTES])
        self.disk_bytes = rng.choice([None, DISK_BYTES])


@dataclass
class Stack:
    """Toy layers one on another, in one store."""

    layers: list[Toy]
    placements: tuple[Placement, ...]
    skeletal: Tier

    @classmethod
    def of(cls, store: TensorStore, placements: tuple[Placement, ...], skeletal: Tier) -> Stack:
        torch.manual_seed(3)
        layers = [Toy.of(toy_params(), tokens=TOKENS) for _ in range(LAYERS)]
        for layer in layers:
            layer.store, layer.core = store, BlindCore()
        return cls(layers, placements, skeletal)

    def step(self) -> Grads:
        """Forward and backward; the gradients of x and of every parameter."""
        x = toy_input(tokens=TOKENS).requires_grad_()
        params = [param for layer in self.layers for param in layer.split.params.values()]
        return list(torch.autograd.grad(self._loss(x), [x, *params], allow_unused=True))

    def abandon(self) -> Tensor:
        """Forward, and backward through the last layer alone: what was fetched for the others is
        there until the result is dropped.
        """
        params = list(self.layers[-1].split.params.values())
        loss = self._loss(toy_input(tokens=TOKENS))
        torch.autograd.grad(loss, params, allow_unused=True)
        return loss

    def _loss(self, x: Tensor) -> Tensor:
        y, routers = x, []
        for layer in self.layers:
            run = layer.forward(TILE_TOKENS, self.placements, skeletal=self.skeletal)
            outputs = run_tiled(run, y)
            # What lies between layers takes the memory that they let go.
            y = torch.tanh(outputs[""])
            routers.append(outputs["router"].sum())
        return y.square().sum() + torch.stack(routers).sum()


@dataclass
class Rig:
    """The real engine over doubles."""

    streams: DoubleStreams
    disk: DoubleDisk | None
    host: HostTier

    @classmethod
    def of(cls, schedule: Schedule) -> Rig:
        streams = DoubleStreams(schedule.seed)
        disk = None
        if schedule.has_disk:
            disk = DoubleDisk(streams, schedule.seed, limit_bytes=schedule.disk_bytes)
        limits = schedule.in_flight_bytes, schedule.host_bytes
        return cls(streams, disk, host_tier(streams, *limits, disk=disk))

    def settle(self) -> None:
        """Let all end that a disk has still to do, without a stop of the host."""
        self.host.sweep()
        if self.disk is not None:
            self.disk.run_all()
            self.host.sweep()

    def left(self) -> dict[str, int]:
        """What a settled engine holds, by name: nothing, once everything was dropped."""
        space, pool = self.host.space, self.host.pool
        queues = (space._here, space._writing, space._reading, space._leaving, space._transfers)
        counts = {
            "lent host bytes": pool.size_bytes - pool.free_bytes,
            "lent disk bytes": 0 if self.disk is None else self.disk.lent_bytes,
            "parcels of the host": sum(map(len, queues)) + len(space.arrived),
            "parcels of the engine": len(self.host._flying) + len(self.host.groups),
        }
        return {name: count for name, count in counts.items() if count}


@dataclass
class Outcome:
    """What a run under the doubles gave."""

    grads: list[Grads]
    violations: list[str]
    host: HostTier
    left: dict[str, int]


def kept_gradients() -> Grads:
    """The reference: nothing leaves the device."""
    return Stack.of(TensorStore(), (Placement.KEEP,), Tier.DEVICE).step()


def run(schedule: Schedule, rig: Rig | None = None) -> Outcome:
    """Steps under a schedule."""
    rig = rig or Rig.of(schedule)
    grads = _steps(schedule, rig)
    rig.settle()
    return Outcome(grads, list(rig.streams.violations), rig.host, rig.left())


def _steps(schedule: Schedule, rig: Rig) -> list[Grads]:
    disk = rig.disk
    opened = None if disk is None else lambda: disk
    store = TensorStore(schedule.in_flight_bytes, open_disk=opened)
    store.hosts[CPU] = rig.host
    stack = Stack.of(store, schedule.placements, schedule.skeletal)
    grads = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "_SMALL_BYTES", 0)  # all of a toy is small, and would stay
        abandoned = [stack.abandon()] if schedule.abandons is not Abandoned.NONE else []
        for on_side in schedule.on_side_stream:
            if schedule.abandons is Abandoned.DROPPED:
                abandoned.clear()
            stream = rig.streams.user_stream() if on_side else nullcontext()
            with stream, Compute(rig.streams) if schedule.is_watched else nullcontext():
                grads.append(stack.step())
        abandoned.clear()
    return grads


def host_tier(
    double: DoubleStreams,
    in_flight_bytes: int | None,
    host_bytes: int | None = None,
    *,
    disk: DoubleDisk | None = None,
) -> HostTier:
    """The real engine over the double."""
    alignment_bytes = ALIGNMENT_BYTES if disk is None else disk.alignment_bytes
    pool = PoisoningPool(double, limit_bytes=host_bytes, alignment_bytes=alignment_bytes)
    budget = Budget(in_flight_bytes)
    return HostTier(double, pool, budget=budget, expected_groups=LAYERS, disk=disk)


def same(got: Grads, expected: Grads) -> bool:
    """Bit by bit."""
    pairs = zip(got, expected, strict=True)
    return all(
        one is other or (one is not None and other is not None and torch.equal(one, other))
        for one, other in pairs
    )


def has_nan(grads: Sequence[Tensor | None]) -> bool:
    return any(grad is not None and bool(grad.isnan().any()) for grad in grads)
