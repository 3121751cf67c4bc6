"""What a given swap plan makes of a requested step, without looking for a better one.

Scope: trace, costs and simulation, one after the other; `making.py` is where plans are sought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memo.planning.costing import Costing, traced
from memo.planning.request import PlanRequest
from memo.planning.states import StateChoice
from planner.contracts import Placement, Stored, SwapPlan, Tier
from planner.plan import Predictions
from planner.schedule.contracts import Schedule
from planner.schedule.result import predictions_of
from planner.schedule.simulation import simulate
from planner.schedule.uniform import uniform_swap
from planner.swap.contracts import StepCost
from planner.swap.shares import rates_of
from planner.trace import Phase, StepTrace

_ON_DEVICE = StateChoice(0, "none")
"""Model states whole, and on the device."""


@dataclass(slots=True)
class Predictor:
    """A step that is traced once, and predicted for as many swap plans as are asked about.

    `choice`: where model states are; `slowness`: of this machine, from `calibrated`; without it
    the rates of the request's hardware are taken at their word; `stored`: for attention's backward.

    Raises:
        MemoError: for a model that cannot be traced.
    """

    request: PlanRequest
    choice: StateChoice = _ON_DEVICE
    slowness: Mapping[Phase, float] = field(default_factory=dict)
    stored: Stored = Stored.BEFORE
    trace: StepTrace = field(init=False)
    cost: StepCost = field(init=False)

    def __post_init__(self) -> None:
        self.trace = traced(self.request, stored=self.stored)
        self.cost = self._costing.cost(self.trace)

    @property
    def base_bytes(self) -> int:
        """On the device before the step and after it: model states, buffers and inputs."""
        return self._costing.resident_device_bytes(self.trace)

    def schedule(self, swap: SwapPlan) -> Schedule:
        """The plan's step, simulated.

        Raises:
            ValueError: for a plan with another number of layers or tiles, or one that uses an SSD
                where there is none.
        """
        hardware, dtype = self.request.node.hardware, self.request.dtype
        rates = rates_of(hardware, dtype, sharing=self.request.ranks)
        return simulate(self.cost, rates, swap)

    def predictions(self, swap: SwapPlan) -> Predictions:
        """Of the plan's step. Raises as `schedule` does."""
        return predictions_of(self.schedule(swap), self._costing.workload(self.trace))

    def uniform(
        self,
        placement: Placement,
        skeletal: Tier = Tier.DEVICE,
        *,
        in_flight_bytes: int | None = None,
    ) -> SwapPlan:
        """All layers alike, as `memo.wrap(placement=..., skeletal=...)` runs them."""
        return uniform_swap(self.cost, placement, skeletal, in_flight_bytes=in_flight_bytes)

    @property
    def _costing(self) -> Costing:
        return Costing(self.request, self.choice, self.slowness, self.stored)


def predicted(
    request: PlanRequest,
    swap: SwapPlan,
    *,
    choice: StateChoice = _ON_DEVICE,
    slowness: Mapping[Phase, float] | None = None,
) -> Predictions:
    """What `swap` makes of the requested step; see `Predictor`.

    Raises:
        ValueError: for a plan that is not of this step.
        MemoError: for a model that cannot be traced.
    """
    return Predictor(request, choice, slowness or {}).predictions(swap)
