"""Reading a swap plan out of a solved program.

Scope: from what solvers see, which is per group of equal layers, to a plan per layer, and the bytes
that it may have in flight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pulp

from planner.contracts import LayerSwap, Placement, SwapPlan, Tier
from planner.swap.contracts import LayerCost, StepCost
from planner.swap.device import live_moments
from planner.swap.groups import deal
from planner.swap.program import Program
from planner.swap.variables import GIB, WHOLE_TIER, GroupVariables, solved

_ROUNDING_BUFFERS = 2
"""The most that is worth having in flight, in layers, and what the runtime takes where nothing is
given (MEMO, arXiv 2407.12117, section 4.2: one is copied while compute fills the other)."""


def read_plan(program: Program) -> SwapPlan:
    """The plan that a program's variables stand for."""
    layers = [layer for own in program.variables for layer in _deal(own)]
    return SwapPlan(
        tile_tokens=program.cost.tile_tokens,
        in_flight_bytes=_in_flight_bytes(program, layers),
        layers=tuple(layers),
        stored=program.cost.stored,
    )


def _deal(own: GroupVariables) -> list[LayerSwap]:
    hands = own.group.count
    tiles = deal(solved(own.tiles), Placement.KEEP, hands)
    if own.group.cost.is_whole:
        places = [WHOLE_TIER[next(iter(hand))] for hand in tiles]
        return [LayerSwap(tiles=t, x=p, o=p) for t, p in zip(tiles, places, strict=True)]
    x, o = (deal(solved(tiers), Tier.DEVICE, hands) for tiers in (own.x, own.o))
    return [LayerSwap(tiles=tiles[i], x=next(iter(x[i])), o=next(iter(o[i]))) for i in range(hands)]


def _in_flight_bytes(program: Program, layers: Sequence[LayerSwap]) -> int:
    """What was asked; or as much as helps and fits beside what is stored."""
    moved = [moved_bytes(c, s) for c, s in zip(program.cost.layers, layers, strict=True)]
    least = _up(program.in_flight.varValue)
    if program.budgets.in_flight_bytes is not None or not any(moved):
        return program.budgets.in_flight_bytes or 0
    live = max(pulp.value(m) for m in live_moments(program.cost, program.variables))
    resident = program.cost.resident_bytes.get(Tier.DEVICE, 0)
    room = program.budgets.device_bytes - resident - _up(live)
    if any(_spills(layer) for layer in layers):
        room = min(room, _host_room(program))
    return max(least, min(in_flight_bytes(program.cost, layers), room))


def in_flight_bytes(cost: StepCost, layers: Sequence[LayerSwap]) -> int:
    """As many as help, and as the runtime takes by itself."""
    moved = (moved_bytes(own, layer) for own, layer in zip(cost.layers, layers, strict=True))
    return _ROUNDING_BUFFERS * max(moved)


def _host_room(program: Program) -> int:
    stored = sum(pulp.value(own.stored(Tier.HOST)) for own in program.variables)
    resident = program.cost.resident_bytes.get(Tier.HOST, 0)
    return program.budgets.host_bytes - resident - _up(stored)


def _spills(layer: LayerSwap) -> bool:
    """Whether anything of the layer goes to the SSD."""
    return Tier.SSD in (layer.x, layer.o) or layer.tiles.get(Placement.SSD, 0) > 0


def moved_bytes(cost: LayerCost, layer: LayerSwap) -> int:
    """What a layer sends to the host or beyond."""
    tiles = layer.tiles.get(Placement.HOST, 0) + layer.tiles.get(Placement.SSD, 0)
    short = 1 - cost.last_tile if tiles == cost.tiles else 0
    x_bytes = cost.x_bytes if layer.x is not Tier.DEVICE else 0
    o_bytes = cost.o_bytes if layer.o is not Tier.DEVICE else 0
    return round((tiles - short) * cost.tile_bytes) + x_bytes + o_bytes


def _up(gib: float) -> int:
    """Whole bytes."""
    return math.ceil(gib * GIB)
