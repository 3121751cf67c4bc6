"""Plans with placements as a test wants them, whose predictions are the simulation's.

Scope: nothing here asserts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import distributed as dist
from transformers import PreTrainedConfig, PreTrainedModel

import memo
from memo.parallel.wire import Wire
from memo.planning import here
from memo.planning.choosing import Case
from memo.planning.costing import Costing
from memo.planning.node import Node
from memo.planning.request import PlanRequest
from memo.planning.states import StateChoice
from memo.wrap import runtime_of
from planner.contracts import LayerSwap, Placement, Stored, SwapPlan, Tier
from planner.hardware import Hardware
from planner.plan import Plan
from planner.schedule.planning import Simulated
from planner.schedule.result import plan_of
from planner.schedule.simulation import simulate
from planner.swap.solver import Outcome, Status
from planner.swap.solving import SwapSolution
from tests.behaviour.common import TILE_TOKENS, TOKENS, batch, plain_model
from tests.distributed.models import averaged
from tests.families.harness import Step, train_step
from tests.memo.planning.common import disks, machine

TILES = 5

MIXED = (
    LayerSwap(tiles={Placement.KEEP: 2, Placement.RECOMPUTE: 3}),
    LayerSwap(tiles={Placement.HOST: 4, Placement.RECOMPUTE: 1}, x=Tier.HOST, o=Tier.HOST),
)
"""No layer like another."""

RECOMPUTED = (LayerSwap(tiles={Placement.RECOMPUTE: TILES}),) * 2
KEPT = (LayerSwap(tiles={Placement.KEEP: TILES}),) * 2
ON_HOST = (LayerSwap(tiles={Placement.HOST: TILES}, x=Tier.HOST, o=Tier.HOST),) * 2
ON_SSD = (LayerSwap(tiles={Placement.SSD: TILES}, x=Tier.SSD, o=Tier.SSD),) * 2


def roomy(**changes: Any) -> Hardware:
    """A machine on which small models fit, with a disk."""
    return machine(**{"device_bytes": 10**9, "disks": disks(), **changes})


def plan_with(
    config: PreTrainedConfig,
    layers: Sequence[LayerSwap] = RECOMPUTED,
    *,
    in_flight_bytes: int = 1 << 20,
    hardware: Hardware | None = None,
    stored: Stored = Stored.BEFORE,
    **changes: Any,
) -> Plan:
    """A step of two sequences of TOKENS in tiles of TILE_TOKENS, whose layers are so placed."""
    request = PlanRequest(
        **{
            "name": "small",
            "config": config,
            "tokens": TOKENS,
            "batch": 2,
            "node": Node(hardware or roomy(), "cpu"),
            "dtype": "float32",
            "tile_tokens": TILE_TOKENS,
            **changes,
        }
    )
    case, costing = Case(request), Costing(request, StateChoice(0, "none"), stored=stored)
    trace = case.trace(stored=stored)
    swap = SwapPlan(
        tile_tokens=TILE_TOKENS,
        in_flight_bytes=in_flight_bytes,
        layers=tuple(layers),
        stored=stored,
    )
    cost = costing.cost(trace)
    schedule = simulate(cost, case.rates, swap)
    by_hand = Outcome(Status.FEASIBLE, "by hand", 0.0, 0.0)
    found = Simulated(cost, SwapSolution(swap, by_hand, schedule.step_s, 0.0), schedule)
    return plan_of(costing.workload(trace), request.node.hardware, found)


def placed(model: PreTrainedModel, tokens: int = TOKENS) -> list[list[str]]:
    """Where each layer of a wrapped model has its tiles, in order."""
    runtime = runtime_of(model)
    x = model.get_input_embeddings().weight.new_empty(2, tokens, 32)  # type: ignore[operator]
    policies = [runtime.policy(x, layer.module) for layer in runtime.layers]
    return [[placement.value for placement in policy.placements] for policy in policies]


# ---- jobs of ranks ----


@contextmanager
def _machine_of_first(**changes: Any) -> Iterator[None]:
    """What the first rank finds; no other rank looks."""
    hardware = roomy(gpus=2, link_bytes_per_s=1e9, **changes)

    def found(*_: Any) -> Node:
        assert dist.get_rank() == 0
        return Node(hardware, "cpu")

    with patch.object(here, "machine_of", found):
        yield


def planned_step(wire: Wire) -> Step:
    """A step of a model that was planned for its length; gradients averaged over ranks."""
    model = plain_model()
    with _machine_of_first():
        memo.wrap(model, tokens=TOKENS, batch=2, sequence_parallel=wire.group.size)
    step = train_step(model, batch())
    return Step(step.loss, {name: averaged(grad) for name, grad in step.grads.items()})


def failing_plan(wire: Wire) -> str:
    """What ranks are told for whom nothing fits."""
    with _machine_of_first(device_bytes=100_000):
        try:
            memo.wrap(plain_model(), tokens=TOKENS, batch=2, sequence_parallel=wire.group.size)
        except memo.MemoError as error:
            return str(error)
    return ""
