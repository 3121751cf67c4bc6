"""What a reader of a plan should know beside its figures: what was chosen, assumed, or cannot be.

Scope: sentences.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.filesize import decimal

from memo.planning.costing import Costing
from memo.planning.request import PlanRequest
from memo.planning.states import CPU_ADAM_PER_S, FOREACH_BYTES, StateChoice, states_of
from planner.contracts import Tier
from planner.trace import StepTrace


def notes_of(
    request: PlanRequest,
    trace: StepTrace,
    costing: Costing | None,
    simulated: Costing | None = None,
) -> tuple[str, ...]:
    """Of a plan with states as `costing` has them; None: nothing fits. `simulated`: as the first
    plan had them, whose layout may not have fitted; None: as `costing` has them.
    """
    chosen = () if costing is None else _of_states(request, trace, costing, simulated or costing)
    return (*trace.notes, *chosen, *_whole(request, trace))


def _of_states(
    request: PlanRequest, trace: StepTrace, costing: Costing, simulated: Costing
) -> Iterator[str]:
    yield from _chosen(request, costing.choice, simulated.choice)
    gradient_bytes = states_of(request, trace, costing.choice).gradient_bytes
    if costing.choice.offload_optimizer != "none":
        yield from _of_engine(costing)
    else:
        yield from _of_foreach(request, trace, costing, gradient_bytes)
    if gradient_bytes:
        yield (
            "gradients are counted from when backward makes them: to accumulate them over several "
            f"passes, add {decimal(gradient_bytes)} to the {Tier.DEVICE}'s peak"
        )


def _chosen(request: PlanRequest, choice: StateChoice, simulated: StateChoice) -> Iterator[str]:
    if request.zero is None and request.ranks > 1:
        yield f"ZeRO stage {choice.zero} was chosen"
    if request.offload_optimizer is None and choice.offload_optimizer != "none":
        place, others = {
            "host": ("the host", "the device"),
            "ssd": ("the SSD", "the device or the host"),
        }[choice.offload_optimizer]
        fitted = simulated.offload_optimizer != choice.offload_optimizer
        found = f"no layout of the {Tier.DEVICE}'s memory was found that fits"
        why = found if fitted else "nothing fits"
        yield f"the optimizer's states lie on {place}: with them on {others} {why}"


def _of_foreach(
    request: PlanRequest, trace: StepTrace, costing: Costing, gradient_bytes: int
) -> Iterator[str]:
    """Where the update that is not assumed does not fit at the step's end."""
    more_bytes = FOREACH_BYTES * costing.optimizer(trace).own
    end_bytes = costing.resident_device_bytes(trace) + gradient_bytes + more_bytes
    if request.node.device_kind == "cuda" and end_bytes > request.node.hardware.device_bytes:
        yield (
            "assumed: AdamW that makes no copies (fused=True, as memo train, transformers' Trainer "
            f"and DeepSpeed have it); torch.optim.AdamW's default makes {decimal(more_bytes)} at "
            "the step's end, for which there is no room"
        )


def _of_engine(costing: Costing) -> Iterator[str]:
    place = costing.choice.offload_optimizer
    yield (
        f"the optimizer's states get to the {Tier(place)} by the engine that steps it, such as "
        "DeepSpeed (offload_optimizer): memo.wrap does not move them"
    )
    yield (
        f"assumed, not measured: the node's processors update {CPU_ADAM_PER_S:.0e} parameters a "
        "second (ZeRO-Offload, arXiv 2101.06840, table 4)"
    )


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
