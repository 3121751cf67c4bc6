"""A plan as the runtime's settings: where each layer's tiles and skeletal tensors go.

Scope: from the planner's words to the runtime's, and the refusal of a plan for something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from rich.filesize import decimal
from torch import nn

from memo.contracts import LayerPlacement, Options, PlannedCalls
from memo.parallel.contracts import Stored
from memo.parallel.shares import share_sequence
from memo.planning.forecast import runtime_bytes
from memo.planning.live import LiveModel, is_divided
from offload import MemoError, Placement, Tier
from planner.codec import PlanError
from planner.contracts import LayerSwap
from planner.contracts import Placement as Planned
from planner.contracts import Tier as PlannedTier
from planner.plan import NoPlan, Plan
from planner.swap.shares import budgets_of

_PLACEMENTS: Mapping[str, Placement] = {placement.value: placement for placement in Placement}
_TIERS: Mapping[str, Tier] = {tier.value: tier for tier in Tier}
_STORED: Mapping[str, Stored] = {stored.value: stored for stored in Stored}

PARCEL_BYTES = 64 << 10
"""Added for each parcel of a layer to what a plan puts on the host or the SSD: tensors in a parcel
begin at multiples of 512 bytes, and parcels at those of the disk's blocks."""


def found_plan(plan: object) -> Plan:
    """What `memo.wrap` was given: a plan, or the file of one.

    Raises:
        PlanError: for what is neither, and for a `NoPlan`, with what is missing.
        OSError: for a file that cannot be read.
    """
    match plan:
        case Plan():
            return plan
        case NoPlan():
            raise PlanError(f"plan is a NoPlan: {why_not(plan)}")
        case str() | Path():
            return Plan.load(plan)
        case _:
            raise PlanError(f"plan={plan!r}: takes a Plan, as memo.plan returns, or a file of one")


def why_not(plan: NoPlan) -> str:
    """What binds, and how long a sequence may be. A GPU's memory is each one's, the host's and the
    disks' are the node's, of which the plan's figures are one rank's share.
    """
    work = plan.workload
    cures = [
        _cure(tier, size, work.ranks)
        for tier, size in plan.missing_bytes.items()
        if size is not None
    ]
    cure = " or ".join(cures) or "no increase of one budget alone"
    longest = plan.longest_tokens
    length = (
        ""
        if longest is None
        else f"; the longest sequence that fits is {longest:,} tokens (simulated, not laid out)"
    )
    return (
        f"{work.batch} x {work.tokens:,} tokens of {work.model} do not fit: it takes {cure}{length}"
    )


def _cure(tier: PlannedTier, size_bytes: int, ranks: int) -> str:
    if ranks == 1:
        return f"{decimal(size_bytes)} more of the {tier}"
    if tier is PlannedTier.DEVICE:
        return f"{decimal(size_bytes)} more of the {tier} on each GPU"
    return f"{decimal(ranks * size_bytes)} more of the {tier} on the node"


def check_model(plan: Plan, live: LiveModel) -> None:
    """Whether the plan is for this model and this job. How parameters are divided is not looked at:
    engines do that later (`division_note`).

    Raises:
        PlanError: names all that the plan was not made for.
    """
    if live.ranks != plan.workload.ranks:
        raise PlanError(
            f"the job has ranks={live.ranks} (of torch.distributed), and planned were "
            f"{plan.workload.ranks}, {plan.workload.sequence_parallel} to a sequence"
        )
    plan.check(
        replace(
            plan.workload,
            layers=live.layers,
            parameters=live.parameters,
            dtype=live.dtype,
            train=live.train,
        )
    )
    for index, (layer, is_tiled) in enumerate(zip(plan.swap.layers, live.tiled, strict=True)):
        _check_layer(plan, index, layer, is_tiled=is_tiled)


def division_note(plan: Plan, layers: Iterable[nn.Module]) -> str | None:
    """What is otherwise than planned, and can be lived with, in how the layers' parameters are
    divided among the ranks. It is asked in a call with gradients, where the engine is in place. Of
    ZeRO's stages only the third can be told from parameters.

    Raises:
        MemoError: for parameters that are whole, where stage 3 was planned.
    """
    work, divided = plan.workload, is_divided(layers)
    if work.ranks == 1 or divided == (work.zero == 3):
        return None
    if divided:
        return (
            f"the plan counts the parameters whole on each of {work.ranks} ranks (zero={work.zero}"
            "), and they are divided: there is more room than it uses"
        )
    raise MemoError(
        f"the plan is for zero=3, parameters divided among {work.ranks} ranks, and the layers' are "
        "whole: divide them, after memo.wrap, with DeepSpeed's ZeRO-3 or FSDP2's fully_shard, or "
        "wrap the model with a plan for zero=0, 1 or 2"
    )


def options_of(plan: Plan, live: LiveModel) -> Options:
    """The plan's settings, without the disks, which are the user's.

    Raises:
        PlanError: for a layer whose x and o go to different tiers, which the runtime does not do.
    """
    layers = layer_placements(plan)
    peaks = runtime_bytes(plan, live)
    # x, o and the log-sum-exp, and what is stored beside these.
    skeletal = 3 if stored_of(plan) is Stored.BEFORE else 4
    slack_bytes = PARCEL_BYTES * sum(skeletal + 2 * layer.tile_count for layer in plan.swap.layers)
    options = Options(
        tile_tokens=plan.swap.tile_tokens,
        fractions={Placement.RECOMPUTE: 1.0},
        skeletal=Tier.DEVICE,
        tiled_loss=True,
        in_flight_bytes=plan.swap.in_flight_bytes,
        planned=PlannedCalls(
            tokens=plan.workload.tokens,
            batch=plan.workload.batch,
            layers=layers,
            ssd_bytes=peaks[Tier.SSD] + slack_bytes if peaks[Tier.SSD] else 0,
        ),
    )
    if not options.tiers & {Tier.HOST, Tier.SSD}:
        return options
    return replace(options, host_bytes=_host_bytes(plan, peaks[Tier.HOST], slack_bytes))


def stored_of(plan: Plan) -> Stored:
    """What attention's backward will find in the store."""
    return _STORED[plan.swap.stored.value]


def layer_placements(plan: Plan) -> tuple[LayerPlacement, ...]:
    """Of every layer in forward order; for a call of the planned length the fractions give the
    planned numbers of tiles.
    """
    return tuple(map(_placement, plan.swap.layers))


def _host_bytes(plan: Plan, peak_bytes: int, slack_bytes: int) -> int:
    """The planned peak and what alignment takes, within the machine's budget."""
    budget = budgets_of(plan.hardware, sharing=plan.workload.ranks).host_bytes
    return max(1, peak_bytes, min(peak_bytes + slack_bytes, budget))


def _placement(layer: LayerSwap) -> LayerPlacement:
    count = layer.tile_count
    fractions = {_PLACEMENTS[p.value]: tiles / count for p, tiles in layer.tiles.items() if tiles}
    return LayerPlacement(fractions, _TIERS[layer.x.value], _TIERS[layer.o.value])


def _check_layer(plan: Plan, index: int, layer: LayerSwap, *, is_tiled: bool) -> None:
    shares = share_sequence(plan.workload.tokens, plan.workload.sequence_parallel)
    tiles = -(-shares.tokens[0] // plan.swap.tile_tokens) if is_tiled else 1
    if layer.tile_count != tiles:
        raise PlanError(
            f"layer {index} runs {'tile by tile' if is_tiled else 'whole'}, in {tiles} tiles, and "
            f"planned were {layer.tile_count}"
        )
    moves = any(layer.tiles.get(place, 0) for place in (Planned.HOST, Planned.SSD))
    if not (is_tiled or moves or layer.x is PlannedTier.DEVICE):
        raise PlanError(
            f"layer {index} runs whole, and then its x stays on the device with its tile: planned "
            f"was that it goes to the {layer.x}"
        )
