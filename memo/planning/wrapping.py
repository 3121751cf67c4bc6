"""What `memo.wrap` runs a model by when it is given a plan, or a length to plan for.

Scope: from `wrap`'s arguments and the model to settings, a forecast, and who shares a sequence.
"""

from __future__ import annotations

from torch import distributed as dist
from transformers import PreTrainedModel

from memo.arguments import Arguments, Settings
from memo.options import planned_options, spill_of
from memo.parallel.groups import checked_sequence_parallel
from memo.planning.applied import check_model, found_plan, options_of, stored_of
from memo.planning.forecast import forecast_of
from memo.planning.here import Asked, agreed, plan_here
from memo.planning.live import LiveModel
from offload import MemoError, Tier
from planner.codec import PlanError
from planner.plan import Plan


def planned_settings(root: PreTrainedModel, live: LiveModel, said: Arguments) -> Settings:
    """By the plan that was given, or one that is made now: for the latter all ranks of a job, or of
    the process group that was given, call this. A plan's ZeRO stage and an optimizer off the device
    are left to an engine, which comes later; see `memo.planning.applied.division_note`.

    Raises:
        ValueError: for an argument that is not understood, and a plan for something else.
        MemoError: when nothing fits, or this machine or model cannot be planned for.
    """
    if (tokens := said.tokens) is None:
        plan = found_plan(said.plan)
        check_model(plan, live)
        asked = checked_sequence_parallel(plan.workload.sequence_parallel)
    else:
        asked = checked_sequence_parallel(said.sequence_parallel)
        plan = _planned(root, live, said, tokens, asked)
    planned = options_of(plan, live)
    # A disk that was offered, and is not needed, is left alone.
    is_spilling = tokens is None or Tier.SSD in planned.tiers
    spill = said.spill if is_spilling else {}
    options = planned_options(planned, tiled_loss=said.tiled_loss, **spill)
    return Settings(
        options=options,
        sequence_parallel=asked,
        stored=stored_of(plan),
        forecast=forecast_of(plan, live),
    )


def _planned(
    root: PreTrainedModel,
    live: LiveModel,
    said: Arguments,
    tokens: int | str,
    asked: int | dist.ProcessGroup | None,
) -> Plan:
    spill = spill_of(said.spill_dir, said.spill_bytes, said.verify, said.raw)
    if spill is not None and spill.raw:
        raise ValueError("raw=True beside tokens: block devices are not measured; pass a plan")
    wanted = Asked(
        tokens=tokens,
        batch=1 if said.batch is None else said.batch,
        sequence_parallel=_degree(asked),
        directories=() if spill is None else spill.directories,
        spill_bytes=None if spill is None else spill.size_bytes,
    )
    group = asked if isinstance(asked, dist.ProcessGroup) else None
    plan = agreed(lambda: plan_here(root, live, wanted), group)
    try:
        check_model(plan, live)
    except PlanError as error:
        raise MemoError(
            f"tokens plans for the causal LM of a config, and this {type(root).__name__} is "
            f"something else: {error}"
        ) from error
    return plan


def _degree(asked: int | dist.ProcessGroup | None) -> int:
    if asked is None:
        return 1
    return asked if isinstance(asked, int) else dist.get_world_size(asked)
