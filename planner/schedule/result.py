"""A simulated step as the plan that is handed out.

Scope: naming figures. Nothing is computed that the schedule does not say.
"""

from __future__ import annotations

from dataclasses import replace

from planner.contracts import Lane, Workload
from planner.hardware.contracts import Hardware
from planner.plan import Plan, Predictions
from planner.schedule.contracts import Schedule
from planner.schedule.planning import Simulated


def predictions_of(schedule: Schedule, workload: Workload) -> Predictions:
    """What a simulated step of the workload predicts; whatever the schedule does not know is left
    open.
    """
    return Predictions(
        step_s=schedule.step_s,
        compute_s=schedule.compute_s,
        recompute_s=schedule.recompute_s,
        exposed_s=schedule.exposed_s,
        mfu=schedule.mfu,
        tokens_per_s=workload.step_tokens / schedule.step_s,
        peak_bytes=schedule.peak_bytes,
        moved_bytes=schedule.moved_bytes,
        ssd_written_bytes_per_step=schedule.moved_bytes[Lane.SSD_WRITE],
    )


def plan_of(
    workload: Workload,
    hardware: Hardware,
    found: Simulated,
    *,
    binding: tuple[str, ...] = (),
    longest_tokens: int | None = None,
) -> Plan:
    """The plan with its predictions; those of the layout are left open.

    Raises:
        ValueError: when the workload has another number of layers than what was planned.
    """
    predictions = replace(
        predictions_of(found.schedule, workload),
        binding=binding,
        gap=found.gap,
        longest_tokens=longest_tokens,
    )
    return Plan(workload=workload, hardware=hardware, swap=found.plan, predictions=predictions)
