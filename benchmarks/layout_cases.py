"""Steps to be laid out: traces of published models, each with several swap plans.

Scope: which plans, and tracing for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.published import PUBLISHED
from memo.planning.choosing import Case as Planned
from memo.planning.choosing import choose, tile_tokens_of
from memo.planning.node import Node
from memo.planning.request import PlanRequest
from planner.contracts import LayerSwap, Placement, SwapPlan, Tier
from planner.hardware import named_hardware
from planner.trace import StepTrace

GPU, GPUS, HOST_BYTES = "h100-80gb", 8, 10**12

IN_FLIGHT_BYTES = 192 << 20
"""Of the mixed plans: about two of a 7B model's tiles."""


@dataclass(frozen=True, slots=True)
class Case:
    """One rank's step. `gradient_share`: the part of each gradient that stays on the device once
    its layer's backward is over.
    """

    model: str
    tokens: int
    placement: str
    trace: StepTrace
    swap: SwapPlan
    gradient_share: float
    trace_s: float


def cases_of(models: Sequence[str], tokens: Sequence[int]) -> Iterator[Case]:
    """Every model at every length: `tokens` of a sequence that 8 ranks share."""
    for model in models:
        for length in tokens:
            yield from _cases(model, length)


def _cases(model: str, tokens: int) -> Iterator[Case]:
    planned = Planned(_request(model, tokens))
    start_s = time.monotonic()
    trace = planned.trace()
    trace_s = time.monotonic() - start_s
    shares = {"": 1.0, ", ZeRO": 1 / GPUS}
    for name, swap in (("recompute", _recomputed(trace)), ("mixed", _mixed(trace))):
        for told, share in shares.items():
            yield Case(model, tokens, f"{name}{told}", trace, swap, share, trace_s)
    chosen = choose(planned)
    if chosen is not None:
        share = chosen.costing.gradient_share(chosen.trace)
        plan = chosen.found.plan
        yield Case(model, tokens, "as planned", chosen.trace, plan, share, trace_s)


def _request(model: str, tokens: int) -> PlanRequest:
    hardware = named_hardware(GPU, gpus=GPUS, host_bytes=HOST_BYTES)
    return PlanRequest(
        name=model,
        config=PUBLISHED[model](),
        tokens=tokens,
        node=Node(hardware, "cuda"),
        sequence_parallel=GPUS,
        find_longest=False,
    )


def _recomputed(trace: StepTrace) -> SwapPlan:
    layers = [LayerSwap(tiles={Placement.RECOMPUTE: tiles}) for tiles in _tiles(trace)]
    return SwapPlan(tile_tokens=tile_tokens_of(trace), in_flight_bytes=0, layers=tuple(layers))


def _mixed(trace: StepTrace) -> SwapPlan:
    """Another number of kept tiles in every layer; of three layers' inputs one, and of two layers'
    attention outputs one, stays on the device.
    """
    layers = []
    for index, tiles in enumerate(_tiles(trace)):
        kept = (7 * index + 3) % (tiles + 1)
        moved = (tiles - kept) // 2
        counts = {
            Placement.KEEP: kept,
            Placement.HOST: moved,
            Placement.RECOMPUTE: tiles - kept - moved,
        }
        x, o = (Tier.HOST if index % every else Tier.DEVICE for every in (3, 2))
        layers.append(LayerSwap(tiles=counts, x=x, o=o))
    return SwapPlan(
        tile_tokens=tile_tokens_of(trace), in_flight_bytes=IN_FLIGHT_BYTES, layers=tuple(layers)
    )


def _tiles(trace: StepTrace) -> list[int]:
    """Of every layer in order."""
    tiles = {layer.name: layer.tiles for layer in trace.layers}
    return [tiles[name] for name in trace.order]
