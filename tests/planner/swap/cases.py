"""Small costs, and the best plan for them by trying all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from planner.contracts import LayerSwap, Placement, Tier
from planner.swap.contracts import (
    Budgets,
    LayerCost,
    PartCost,
    Rates,
    SegmentBytes,
    SegmentTimes,
    StepCost,
)
from planner.swap.program import MOVING_COST

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One program: costs, lanes, budgets, and the layers that bytes in flight must hold."""

    cost: StepCost
    rates: Rates
    budgets: Budgets
    held_layers: float


def random_case(seed: int, *, layers: int, tiles: int, has_ssd: bool) -> Case:
    """Sizes of some hundred MiB and times of some seconds, none of them round."""
    rng = random.Random(seed)

    def size(most: int) -> int:
        return rng.randint(1, most) * MIB + rng.randint(0, 1000)

    costs = tuple(_random_layer(rng, tiles) for _ in range(layers))
    everything = sum(layer.all_bytes for layer in costs)
    rate = 0.1 * everything / sum(layer.forward.total_s for layer in costs)
    cost = StepCost(
        tile_tokens=128,
        layers=costs,
        head=PartCost(forward_live_bytes=size(300), backward_live_bytes=size(300)),
        resident_bytes={Tier.DEVICE: size(100), Tier.HOST: size(50)},
    )
    rates = Rates(
        d2h_bytes_per_s=rate * rng.uniform(3, 40),
        h2d_bytes_per_s=rate * rng.uniform(3, 40),
        ssd_write_bytes_per_s=rate * rng.uniform(1, 15) if has_ssd else 0.0,
        ssd_read_bytes_per_s=rate * rng.uniform(1, 15) if has_ssd else 0.0,
    )
    budgets = Budgets(
        device_bytes=max(450 * MIB, 500 * MIB + round(everything * rng.uniform(-0.1, 0.6))),
        host_bytes=60 * MIB + round(everything * rng.uniform(0.0, 0.6)),
        ssd_bytes=round(everything * rng.uniform(0.1, 0.9)) if has_ssd else 0,
        in_flight_bytes=rng.choice([None, None, 300 * MIB]),
    )
    return Case(cost, rates, budgets, rng.choice([0.0, 1.0]))


def _random_layer(rng: random.Random, tiles: int) -> LayerCost:
    def times(most: float) -> SegmentTimes:
        a, b, c = (rng.uniform(0.1, most) for _ in range(3))
        return SegmentTimes(pre_s=a, core_s=b, post_s=c)

    def live(most: int) -> SegmentBytes:
        a, b, c = (rng.randint(1, most) * MIB for _ in range(3))
        return SegmentBytes(pre_bytes=a, core_bytes=b, post_bytes=c)

    tile_bytes = rng.randint(50, 300) * MIB + 7
    return LayerCost(
        name="layer",
        tiles=tiles,
        forward=times(1.0),
        backward=times(2.0),
        recompute=replace(times(0.6), core_s=0.0),
        x_bytes=rng.randint(20, 80) * MIB + 3,
        o_bytes=rng.randint(20, 80) * MIB + 5,
        tile_bytes=tile_bytes,
        tile_pre_bytes=tile_bytes // 3,
        gradient_bytes=rng.randint(1, 60) * MIB,
        forward_live=live(200),
        backward_live=live(300),
    )


def all_layers(cost: LayerCost, tiers: Sequence[Tier]) -> Iterator[LayerSwap]:
    """Everything that one layer may do; x and o of a whole layer go with its tile."""
    names = [Placement.RECOMPUTE, *(_PLACEMENT[tier] for tier in tiers)]
    for counts in itertools.product(range(cost.tiles + 1), repeat=len(names)):
        if sum(counts) == cost.tiles:
            tiles = dict(zip(names, counts, strict=True))
            whole = _tier_of_whole(tiles) if cost.is_whole else None
            pairs = itertools.product(tiers, repeat=2) if whole is None else [(whole, whole)]
            for x, o in pairs:
                yield LayerSwap(tiles=tiles, x=x, o=o)


def _tier_of_whole(tiles: dict[Placement, int]) -> Tier:
    """Where x of a whole layer is, by its one tile."""
    moved = {Placement.HOST: Tier.HOST, Placement.SSD: Tier.SSD}
    (placement,) = (place for place, count in tiles.items() if count)
    return moved.get(placement, Tier.DEVICE)


_PLACEMENT = {
    Tier.DEVICE: Placement.KEEP,
    Tier.HOST: Placement.HOST,
    Tier.SSD: Placement.SSD,
}


def stored(cost: LayerCost, swap: LayerSwap, tier: Tier) -> int:
    """Bytes of a layer in a tier."""
    size = cost.tile_bytes * swap.tiles.get(_PLACEMENT[tier], 0)
    return size + cost.x_bytes * (swap.x is tier) + cost.o_bytes * (swap.o is tier)


def device_live(cost: StepCost, plan: Sequence[LayerSwap]) -> int:
    """The most that lives on the device, without what is in flight: every moment, layer by layer.
    A layer's own x and o are in its live bytes, those of o for the core alone only in the core's.
    """
    before = moment = 0
    moments = [0]
    kept = [stored(c, s, Tier.DEVICE) for c, s in zip(cost.layers, plan, strict=True)]
    tiles = [
        c.tile_bytes * s.tiles.get(Placement.KEEP, 0)
        for c, s in zip(cost.layers, plan, strict=True)
    ]
    for_core = [
        c.o_core_bytes if s.o is Tier.DEVICE else 0 for c, s in zip(cost.layers, plan, strict=True)
    ]
    for index, layer in enumerate(cost.layers):
        live = layer.forward_live
        moments += [before + live.pre_bytes, before + live.core_bytes]
        moments += [before + tiles[index] + for_core[index] + live.post_bytes]
        before += kept[index]
    moments.append(before + max(cost.head.forward_live_bytes, cost.head.backward_live_bytes))
    after = cost.head.gradient_bytes
    for index in reversed(range(len(cost.layers))):
        layer, live = cost.layers[index], cost.layers[index].backward_live
        before -= kept[index]
        moment = before + after + tiles[index]
        moments += [moment + for_core[index] + live.post_bytes]
        moments += [moment + live.core_bytes, moment + live.pre_bytes]
        after += layer.gradient_bytes
    return max(moments) + cost.resident_bytes.get(Tier.DEVICE, 0)


def lost_s(case: Case, plan: Sequence[LayerSwap]) -> float | None:
    """What a plan costs beyond compute as the program counts it, with as much in flight as fits;
    None when a budget is broken.
    """
    cost, budgets = case.cost, case.budgets
    layers = list(zip(cost.layers, plan, strict=True))
    host, ssd = (sum(stored(c, s, tier) for c, s in layers) for tier in (Tier.HOST, Tier.SSD))
    room = budgets.device_bytes - device_live(cost, plan)
    host_room = budgets.host_bytes - host - cost.resident_bytes.get(Tier.HOST, 0)
    if min(room, host_room, budgets.ssd_bytes - ssd) < 0:
        return None
    moved = [stored(c, s, Tier.HOST) + stored(c, s, Tier.SSD) for c, s in layers]
    window = min(room, host_room) if ssd else room
    least = case.held_layers * max(moved)
    if budgets.in_flight_bytes is not None:
        window, least = min(window, budgets.in_flight_bytes), 0.0
    if window < least:
        return None
    recompute = [
        c.recompute.total_s * s.tiles.get(Placement.RECOMPUTE, 0) / c.tiles for c, s in layers
    ]
    lanes = [(moved, case.rates.d2h_bytes_per_s, case.rates.h2d_bytes_per_s)]
    if ssd:
        spilled = [stored(c, s, Tier.SSD) for c, s in layers]
        rates = (case.rates.ssd_write_bytes_per_s, case.rates.ssd_read_bytes_per_s)
        lanes.append((spilled, *rates))
    forward = [c.forward.total_s for c in cost.layers]
    backward = [c.backward.total_s + r for c, r in zip(cost.layers, recompute, strict=True)]
    moving = sum(MOVING_COST * sum(sizes) * (1 / out + 1 / back) for sizes, out, back in lanes)
    waits = _written_s([(sizes, out) for sizes, out, _ in lanes], forward, window)
    waits += _read_s([(sizes, back) for sizes, _, back in lanes], backward, window)
    return sum(recompute) + waits + moving


Lane = tuple[Sequence[float], float]


def _written_s(lanes: Sequence[Lane], times: Sequence[float], window: float) -> float:
    """Seconds that forward waits: as late as can be, and never longer than the slowest lane
    needs."""
    queues, waited = [0.0] * len(lanes), 0.0
    for index, duration in enumerate(times):
        over = [
            (queue + sizes[index] - window) / rate - duration
            for queue, (sizes, rate) in zip(queues, lanes, strict=True)
        ]
        wait = max(0.0, *over)
        queues = [
            max(0.0, queue + sizes[index] - rate * (duration + wait))
            for queue, (sizes, rate) in zip(queues, lanes, strict=True)
        ]
        waited += wait
    return waited


def _read_s(lanes: Sequence[Lane], times: Sequence[float], window: float) -> float:
    ahead, waited = [min(window, sum(sizes)) for sizes, _ in lanes], 0.0
    for index in reversed(range(len(times))):
        short = [
            (sizes[index] - there) / rate - times[index]
            for there, (sizes, rate) in zip(ahead, lanes, strict=True)
        ]
        wait = max(0.0, *short)
        ahead = [
            min(window, there + rate * (times[index] + wait) - sizes[index])
            for there, (sizes, rate) in zip(ahead, lanes, strict=True)
        ]
        waited += wait
    return waited


def best_lost_s(case: Case) -> float | None:
    """The least over all plans; None when none fits."""
    tiers = [tier for tier in Tier if case.rates.has_ssd or tier is not Tier.SSD]
    choices = [list(all_layers(cost, tiers)) for cost in case.cost.layers]
    found = [lost_s(case, plan) for plan in itertools.product(*choices)]
    return min((lost for lost in found if lost is not None), default=None)
