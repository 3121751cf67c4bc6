"""Training steps over the double: a stack of toy layers whose tensors go to the host and come back
by lanes that run as late, and in as bad an order, as their events allow.

Scope: building and running; what must hold is said in the tests.
"""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offload import Placement, TensorStore, Tier, run_tiled
from offload.transfers import HostTier
from tests.offload.toy import Toy, ToyCore, toy_input, toy_params
from tests.races.compute import Compute
from tests.races.double import DoubleStreams, PoisoningPool


class BlindCore(ToyCore):
    """Does not look whether it was given what forward had: a race must get as far as gradients."""

    checks = False


LAYERS, TOKENS, TILE_TOKENS = 3, 7, 3
CPU = torch.device("cpu")

Grads = list[Tensor | None]


@dataclass
class Schedule:
    """What one run asks for; all of it follows from the seed. Users may train on a stream of their
    own, and not always on the same one. Watched, the double sees every operation of compute;
    unwatched, four times as many schedules run in the same time.
    """

    seed: int
    placements: tuple[Placement, ...] = field(init=False)
    in_flight_bytes: int | None = field(init=False)
    on_side_stream: tuple[bool, ...] = field(init=False)
    is_watched: bool = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        kinds = [Placement.HOST, Placement.HOST, Placement.RECOMPUTE, Placement.KEEP]
        self.placements = tuple(rng.choice(kinds) for _ in range(3))
        self.in_flight_bytes = rng.choice([None, 0, 3000, 20_000, 1 << 20])
        # One step, or two on the same stream or on different ones.
        sides = [(False,), (True,), (False, True), (True, False), (False, False)]
        self.on_side_stream = rng.choice(sides)
        self.is_watched = rng.random() < 0.5


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
        y, routers = x, []
        for layer in self.layers:
            run = layer.forward(TILE_TOKENS, self.placements, skeletal=self.skeletal)
            outputs = run_tiled(run, y)
            # What lies between layers takes the memory that they let go.
            y = torch.tanh(outputs[""])
            routers.append(outputs["router"].sum())
        loss = y.square().sum() + torch.stack(routers).sum()
        params = [param for layer in self.layers for param in layer.split.params.values()]
        return list(torch.autograd.grad(loss, [x, *params], allow_unused=True))


@dataclass
class Outcome:
    """What a run under the double gave."""

    grads: list[Grads]
    violations: list[str]
    host: HostTier


def kept_gradients() -> Grads:
    """The reference: nothing leaves the device."""
    return Stack.of(TensorStore(), (Placement.KEEP,), Tier.DEVICE).step()


def run(schedule: Schedule, double: DoubleStreams | None = None) -> Outcome:
    """Steps under a schedule."""
    double = double or DoubleStreams(schedule.seed)
    host = host_tier(double, schedule.in_flight_bytes)
    store = TensorStore(schedule.in_flight_bytes)
    store.hosts[CPU] = host
    stack = Stack.of(store, schedule.placements, Tier.HOST)
    grads = []
    for on_side in schedule.on_side_stream:
        stream = double.user_stream() if on_side else nullcontext()
        with stream, Compute(double) if schedule.is_watched else nullcontext():
            grads.append(stack.step())
    store.sweep()
    return Outcome(grads, list(double.violations), host)


def host_tier(double: DoubleStreams, in_flight_bytes: int | None) -> HostTier:
    """The real engine over the double."""
    pool = PoisoningPool(double.host_memory)
    return HostTier(double, pool, in_flight_bytes=in_flight_bytes, expected_groups=LAYERS)


def same(got: Grads, expected: Grads) -> bool:
    """Bit by bit."""
    pairs = zip(got, expected, strict=True)
    return all(
        one is other or (one is not None and other is not None and torch.equal(one, other))
        for one, other in pairs
    )


def has_nan(grads: Grads) -> bool:
    return any(grad is not None and bool(grad.isnan().any()) for grad in grads)
