"""A plan as the runtime's settings: where each layer's tiles and skeletal tensors go.

Scope: from the planner's words to the runtime's, and the refusal of a plan for something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from offload import Placement, Tier
from planner.codec import PlanError
from planner.contracts import LayerRun, LayerSwap, Plan

_PLACEMENTS: Mapping[str, Placement] = {placement.value: placement for placement in Placement}
_TIERS: Mapping[str, Tier] = {"device": Tier.DEVICE, "host": Tier.HOST, "ssd": Tier.SSD}


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """One layer: the fractions of its tiles by placement, and the tier of its x and o."""

    fractions: Mapping[Placement, float]
    skeletal: Tier


def layer_placements(plan: Plan) -> tuple[LayerPlacement, ...]:
    """Of every layer in forward order; for a call of the planned length the fractions give the
    planned numbers of tiles.

    Raises:
        PlanError: for a layer whose x and o go to different tiers, which the runtime does not do.
    """
    return tuple(_placement(index, layer) for index, layer in enumerate(plan.swap.layers))


def check_model(
    plan: Plan, kinds: Sequence[str], *, parameters: int, dtype: str, sequence_parallel: int
) -> None:
    """`kinds` are the model's layers in forward order, `parameters` those of all its modules.

    Raises:
        PlanError: names all that the plan was not made for.
    """
    runs = tuple(LayerRun(layer_class=kind, count=len(list(run))) for kind, run in groupby(kinds))
    plan.check(replace(plan.workload, layers=runs, parameters=parameters, dtype=dtype))
    if sequence_parallel != plan.workload.sequence_parallel:
        raise PlanError(
            f"sequence_parallel is {sequence_parallel}, planned was "
            f"{plan.workload.sequence_parallel}"
        )


def _placement(index: int, layer: LayerSwap) -> LayerPlacement:
    if layer.x is not layer.o:
        raise PlanError(
            f"layer {index}: x goes to the {layer.x} and o to the {layer.o}; memo.wrap takes plans "
            "with both in one tier"
        )
    count = layer.tile_count
    fractions = {_PLACEMENTS[p.value]: tiles / count for p, tiles in layer.tiles.items() if tiles}
    return LayerPlacement(fractions, _TIERS[layer.x.value])
