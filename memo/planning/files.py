"""What `memo plan` writes of one plan: the plan, a page, and its step as a trace.

Scope: which files there are, and which there cannot be where nothing fits.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from memo.planning.making import Outcome
from memo.planning.page import save_page
from memo.planning.request import PlanRequest
from memo.planning.sweep import neighbours
from planner.plan import Plan
from planner.schedule.chrome import save_trace
from planner.sizes import format_tokens


def save_files(
    outcome: Outcome,
    request: PlanRequest,
    *,
    output: Path | None,
    trace: Path | None,
    report: Path | None,
) -> None:
    """Write those that are not None; the report takes some more plans. What takes a plan that fits,
    and is not written, is told on standard error.

    Raises:
        OSError: when a file cannot be written.
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    if isinstance(outcome.result, Plan):
        if output is not None:
            outcome.result.save(output)
        if trace is not None and outcome.schedule is not None:
            save_trace(outcome.schedule, trace, name=_name(outcome.result))
    else:
        for path in (path for path in (output, trace) if path is not None):
            errors.print(f"{path} is not written: nothing fits", markup=False)
    if report is not None:
        with errors.status("planning other lengths and GPUs"):
            save_page(outcome, list(neighbours(request)), report)


def _name(plan: Plan) -> str:
    return f"planned: {plan.workload.model}, {format_tokens(plan.workload.tokens)} tokens"
