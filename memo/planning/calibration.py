"""How fast a model's own layers run on this machine, for the steps that are planned for it.

Scope: from a model to the `slowness` of each phase of its step. Running and timing are
`memo.tracing`'s.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from memo.contracts import LayerMode
from memo.planning.costing import local_tokens, traced
from memo.planning.request import PlanRequest
from memo.tracing.timed import time_step
from planner.swap.clock import slowness_of
from planner.trace import Phase

MOST_TOKENS = 8192
"""Of a sequence that is timed. A longer one's phases are told from it: work on tokens grows with
their number, attention's with its FLOPs."""


def calibrated(
    request: PlanRequest,
    model: nn.Module,
    *,
    most_tokens: int = MOST_TOKENS,
    everything: bool = False,
    repeats: int = 3,
) -> dict[Phase, float]:
    """What `Costing.slowness` takes, from some seconds of `model`'s layers.

    Args:
        request: the model's step; of its node only the rates are asked.
        model: in training mode and not wrapped, on the device that it is trained on.
        most_tokens: longer sequences are timed at this length.
        everything: run every tile, where one would stand for many.
        repeats: of the timed run, of which the median is taken.

    Raises:
        ValueError: for numbers below 1.
        MemoError: for a model that cannot be traced.
    """
    tokens = min(local_tokens(request), most_tokens)
    timed = replace(request, tokens=tokens, sequence_parallel=1)
    trace = traced(timed)
    measured_s = time_step(
        model,
        tokens=tokens,
        batch=request.batch,
        tile_tokens=request.tile_tokens,
        everything=everything,
        repeats=repeats,
        modes={layer.name: LayerMode(layer.reason) for layer in trace.layers},
    )
    return slowness_of(trace, measured_s, request.node.hardware)
