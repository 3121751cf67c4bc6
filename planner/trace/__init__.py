"""A training step as it was recorded: operations, allocations, costs, and what lives when.

`contracts.py` has the data. `recorder.py` records what runs, `stopwatch.py` times it, `blocks.py`
cuts the tape into parts of a step, `live.py` and `peaks.py` add up what lives, `states.py` tells
the bytes of weights, gradients and optimizer, `store.py` is the JSON form. What is run under the
recorder is the caller's business.
"""

from planner.trace.contracts import (
    Allocation,
    Block,
    Kind,
    LayerTrace,
    OperationCost,
    PartTrace,
    Pass,
    Phase,
    Repeat,
    Segment,
    StepTrace,
)
from planner.trace.live import need_of
from planner.trace.need import Need
from planner.trace.peaks import PartNeed, layer_need, step_needs, step_peak_bytes
from planner.trace.states import ModelStates, ParameterCounts, model_states
from planner.trace.store import trace_from_json, trace_to_json

__all__ = [
    "Allocation",
    "Block",
    "Kind",
    "LayerTrace",
    "ModelStates",
    "Need",
    "OperationCost",
    "ParameterCounts",
    "PartNeed",
    "PartTrace",
    "Pass",
    "Phase",
    "Repeat",
    "Segment",
    "StepTrace",
    "layer_need",
    "model_states",
    "need_of",
    "step_needs",
    "step_peak_bytes",
    "trace_from_json",
    "trace_to_json",
]
