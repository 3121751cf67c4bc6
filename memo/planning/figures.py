"""A plan's figures as JSON has them, and what follows from them.

Scope: naming, sums and one day's wear. Sizes are one GPU's; what the node has in all says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.codec import encode
from planner.contracts import Placement, Stored, SwapPlan, Tier
from planner.plan import NoPlan, Plan

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Wear:
    """What a day of training writes to the node's disks, and the days that they last; None: their
    endurance is not known.
    """

    bytes_per_day: float
    days: float | None


def wear_of(plan: Plan) -> Wear:
    """Of steps one after another, all day."""
    predictions, disks = plan.predictions, plan.hardware.disks
    written = predictions.ssd_written_bytes_per_step * plan.hardware.gpus
    per_day = written / predictions.step_s * DAY_S
    if disks is None or disks.endurance_bytes is None or not per_day:
        return Wear(per_day, None)
    return Wear(per_day, disks.count * disks.endurance_bytes / per_day)


def placement_shares(swap: SwapPlan) -> dict[Placement, float]:
    """The fraction of all layers' rebuildable tensors in each place."""
    count = len(swap.layers)
    return {p: sum(layer.share(p) for layer in swap.layers) / count for p in Placement}


STORED = {
    Stored.OUTPUT: "o is stored, too, as ranks computed it: backward exchanges q, k and v again",
    Stored.AFTER: "q, k, v and o are stored as ranks exchanged them: backward exchanges gradients",
}
"""What is said of a plan with more stored for attention's backward than what each rank has of its
own tokens."""


def figures(result: Plan | NoPlan) -> dict[str, object]:
    """As `--json` prints them; null where there is no plan to tell from."""
    told = _of_plan(result) if isinstance(result, Plan) else _of_none(result)
    return {
        "fits": isinstance(result, Plan),
        "binding": list(result.binding if isinstance(result, NoPlan) else _binding(result)),
        **told,
        "workload": encode(result.workload),
        "hardware": encode(result.hardware),
        "notes": list(result.notes),
    }


def _binding(plan: Plan) -> tuple[str, ...]:
    return plan.predictions.binding


def _of_plan(plan: Plan) -> dict[str, object]:
    told, wear = plan.predictions, wear_of(plan)
    return {
        "step_s": told.step_s,
        "compute_s": told.compute_s,
        "recompute_s": told.recompute_s,
        "exposed_s": sum(told.exposed_s.values()),
        "exposed_s_by_lane": encode(told.exposed_s),
        "mfu": told.mfu,
        "tokens_per_s": told.tokens_per_s,
        "peak_device_bytes": told.peak_bytes.get(Tier.DEVICE, 0),
        "peak_host_bytes": told.peak_bytes.get(Tier.HOST, 0),
        "ssd_bytes": told.peak_bytes.get(Tier.SSD, 0),
        "node_peak_host_bytes": told.peak_bytes.get(Tier.HOST, 0) * plan.hardware.gpus,
        "node_ssd_bytes": told.peak_bytes.get(Tier.SSD, 0) * plan.hardware.gpus,
        "ssd_written_bytes_per_step": told.ssd_written_bytes_per_step,
        "node_ssd_written_bytes_per_day": wear.bytes_per_day,
        "ssd_days": wear.days,
        "moved_bytes_by_lane": encode(told.moved_bytes),
        "longest_tokens": told.longest_tokens,
        "gap": told.gap,
        "arena_bytes": told.arena_bytes,
        "arena_lower_bound_bytes": told.arena_lower_bound_bytes,
        "reserved_bytes": told.reserved_bytes,
        "tile_tokens": plan.swap.tile_tokens,
        "in_flight_bytes": plan.swap.in_flight_bytes,
        "stored": plan.swap.stored.value,
        "placement": encode(placement_shares(plan.swap)),
        "missing_bytes": None,
    }


_NONE: Mapping[str, object] = dict.fromkeys(
    (
        *("step_s", "compute_s", "recompute_s", "exposed_s", "exposed_s_by_lane", "mfu"),
        *("tokens_per_s", "peak_device_bytes", "peak_host_bytes", "ssd_bytes"),
        *("node_peak_host_bytes", "node_ssd_bytes"),
        *("ssd_written_bytes_per_step", "node_ssd_written_bytes_per_day", "ssd_days"),
        *("moved_bytes_by_lane", "longest_tokens", "gap", "arena_bytes"),
        *("arena_lower_bound_bytes", "reserved_bytes", "tile_tokens", "in_flight_bytes"),
        *("stored", "placement", "missing_bytes"),
    )
)


def _of_none(result: NoPlan) -> dict[str, object]:
    return {
        **_NONE,
        "longest_tokens": result.longest_tokens,
        "missing_bytes": encode(result.missing_bytes),
    }
