"""What the planner says of the long run, before it is run.

Scope: the request, and the simulated step with every tile recomputed and layer inputs and attention
outputs on the device, which is what the ranks then do. Only memory is held against the run: rates
are of no machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.long_case import LongCase
from memo.planning.node import Node
from memo.planning.predicting import Predictor
from memo.planning.request import PlanRequest
from planner.contracts import Placement, Tier
from planner.hardware import Hardware

_RATE = 1e10
_MEMORY_BYTES = 1 << 40
"""More than any run takes: what is asked is how much it takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongPrediction:
    """One rank's peak: weights, optimizer states, gradients and activations."""

    peak_bytes: int
    tile_tokens: int


def predicted(case: LongCase) -> LongPrediction:
    """Of the rank with the most tokens.

    Raises:
        MemoError: for a model that cannot be traced.
    """
    predictor = Predictor(_request(case))
    swap = predictor.uniform(Placement.RECOMPUTE)
    peaks = predictor.predictions(swap).peak_bytes
    return LongPrediction(peak_bytes=peaks[Tier.DEVICE], tile_tokens=swap.tile_tokens)


def _request(case: LongCase) -> PlanRequest:
    hardware = Hardware(
        device="cpu",
        gpus=case.ranks,
        device_bytes=_MEMORY_BYTES,
        peak_flops_per_s={case.dtype: _RATE},
        device_bytes_per_s=_RATE,
        d2h_bytes_per_s=_RATE,
        h2d_bytes_per_s=_RATE,
        link_bytes_per_s=_RATE,
        host_bytes=_MEMORY_BYTES,
    )
    return PlanRequest(
        name="long",
        config=case.config(),
        tokens=case.tokens,
        node=Node(hardware, "cpu"),
        zero=0,
        offload_optimizer="none",
        sequence_parallel=case.ranks,
        dtype=case.dtype,
        find_longest=False,
        lay_out=False,
    )
