"""What a reader of a plan should know beside its figures: what was chosen, assumed, or cannot be.

Scope: sentences.
"""

from __future__ import annotations

from collections.abc import Iterator

from memo.planning.costing import Costing
from memo.planning.request import PlanRequest
from planner.contracts import Tier
from planner.trace import StepTrace


def notes_of(request: PlanRequest, trace: StepTrace, costing: Costing | None) -> tuple[str, ...]:
    """Of a plan with states as `costing` has them; None: nothing fits."""
    return (*trace.notes, *_chosen(request, costing), *_whole(request, trace))


def _chosen(request: PlanRequest, costing: Costing | None) -> Iterator[str]:
    if costing is None:
        return
    choice = costing.choice
    if request.zero is None and request.ranks > 1:
        yield f"ZeRO stage {choice.zero} was chosen"
    if request.offload_optimizer is None and choice.offload_optimizer != "none":
        place = {"host": "the host", "ssd": "the SSD"}[choice.offload_optimizer]
        yield f"the optimizer's states lie on {place}: with them on the device nothing fits"


def _whole(request: PlanRequest, trace: StepTrace) -> Iterator[str]:
    for layer in trace.layers:
        if layer.reason is None:
            continue
        yield f"layers of class {layer.name} run whole, not tile by tile: {layer.reason}"
        if request.sequence_parallel > 1:
            yield (
                f"whole layers cannot share a sequence where they mix tokens ({layer.name} may): "
                "plan with sequence_parallel=1"
            )


def layout_note(excess_bytes: int) -> str:
    """The simulation fits, and the layout does not."""
    return (
        f"no layout of the {Tier.DEVICE}'s memory was found that fits: {excess_bytes:,} bytes more"
    )
