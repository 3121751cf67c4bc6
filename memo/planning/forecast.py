"""What a plan predicts, in terms of what a run can measure.

Scope: taking a plan's figures apart: the runtime's share, and what is an engine's.
"""

from __future__ import annotations

import torch

from memo.planning.live import LiveModel
from memo.planning.states import Optimizer, StateChoice
from memo.predicted import Forecast
from offload import Lane, Tier
from planner.contracts import LayerSwap, Placement
from planner.contracts import Tier as PlannedTier
from planner.plan import Plan


def runtime_bytes(plan: Plan, live: LiveModel) -> dict[Tier, int]:
    """The planned peaks; on the host and the SSD without model states, which are an engine's."""
    states = _optimizer(plan, live).states
    others = {Tier.HOST: states.host_bytes, Tier.SSD: states.ssd_bytes}
    peaks = {Tier(tier.value): size for tier, size in plan.predictions.peak_bytes.items()}
    return {tier: max(0, peaks.get(tier, 0) - others.get(tier, 0)) for tier in Tier}


def forecast_of(plan: Plan, live: LiveModel) -> Forecast:
    """What the plan predicts for a model that is trained with it."""
    told, optimizer = plan.predictions, _optimizer(plan, live)
    return Forecast(
        plan=plan,
        pass_s=max(0.0, told.step_s - optimizer.seconds),
        peak_bytes=runtime_bytes(plan, live),
        moved_bytes={Lane(lane.value): size for lane, size in told.moved_bytes.items()},
        exposed_s={Lane(lane.value): seconds for lane, seconds in told.exposed_s.items()},
        ssd_written_bytes=max(0, told.ssd_written_bytes_per_step - optimizer.written_bytes),
        uses_ssd=any(map(_uses_ssd, plan.swap.layers)),
    )


def _optimizer(plan: Plan, live: LiveModel) -> Optimizer:
    """As the plan counted its update: of all parameters but where adapters are trained."""
    work = plan.workload
    return Optimizer(
        plan.hardware,
        StateChoice(work.zero, work.offload_optimizer),
        live.trainable if live.train == "lora" else live.parameters,
        live.parameters,
        work.ranks,
        getattr(torch, work.dtype).itemsize,
    )


def _uses_ssd(layer: LayerSwap) -> bool:
    return PlannedTier.SSD in (layer.x, layer.o) or layer.share(Placement.SSD) > 0
