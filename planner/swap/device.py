"""What is live on the device at each moment of a step that may be its peak.

Scope: expressions in GiB, without what is resident or in flight. Within a group of equal layers
what is live changes evenly from layer to layer, so its first and its last layer tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pulp

from planner.contracts import Tier
from planner.swap.contracts import StepCost
from planner.swap.variables import GIB, Expression, GroupVariables


def live_moments(cost: StepCost, variables: Sequence[GroupVariables]) -> Iterator[Expression]:
    """The GiB live at every moment at which layers store something that may be the peak."""
    before: list[Expression] = []
    after_bytes = cost.head.gradient_bytes + sum(layer.gradient_bytes for layer in cost.layers)
    for own in variables:
        gradient_bytes, last = own.group.cost.gradient_bytes, own.group.count - 1
        after_bytes -= gradient_bytes * own.group.count
        yield from _forward(before, own)
        yield from _backward(before, own, last, after_bytes)
        if last:
            yield from _backward(before, own, 0, after_bytes + gradient_bytes * last)
        before.append(own.stored(Tier.DEVICE))
    head = cost.head
    yield pulp.lpSum(before) + max(head.forward_live_bytes, head.backward_live_bytes) / GIB


def _forward(before: Sequence[Expression], own: GroupVariables) -> Iterator[Expression]:
    """The group's last layer; its own x and o are counted with what is live in it."""
    live, others = own.group.cost.forward_live, (own.group.count - 1) / own.group.count
    kept, skeletal = own.tiles_in(Tier.DEVICE), others * own.skeletal_in(Tier.DEVICE)
    base = pulp.lpSum([*before, skeletal])
    yield base + others * kept + max(live.pre_bytes, live.core_bytes) / GIB
    yield base + kept + _of_core(own) + live.post_bytes / GIB


def _backward(
    before: Sequence[Expression], own: GroupVariables, index: int, after_bytes: int
) -> Iterator[Expression]:
    """The group's layer `index`; `after_bytes` are gradients that later layers have left."""
    cost, count = own.group.cost, own.group.count
    kept, skeletal = own.tiles_in(Tier.DEVICE), own.skeletal_in(Tier.DEVICE)
    live = cost.backward_live
    base = pulp.lpSum([*before, index / count * skeletal, after_bytes / GIB])
    # A tile's graph is whole until its `pre` has run: kept tiles are all there at first.
    base += (index + 1) / count * kept
    if not cost.o_core_bytes:
        yield base + max(live.post_bytes, live.core_bytes, live.pre_bytes) / GIB
        return
    yield base + _of_core(own) + live.post_bytes / GIB
    yield base + max(live.core_bytes, live.pre_bytes) / GIB


def _of_core(own: GroupVariables) -> Expression:
    """What one layer has there of what is stored for its core alone."""
    cost, count = own.group.cost, own.group.count
    if not cost.o_core_bytes or Tier.DEVICE not in own.o:
        return 0.0
    return cost.o_core_bytes / GIB / count * own.o[Tier.DEVICE]


def least_live(cost: StepCost) -> Iterator[float]:
    """The GiB live at the step's two ends, when no layer stores anything or moves."""
    embedding = cost.embedding
    gradient_bytes = cost.head.gradient_bytes + sum(lc.gradient_bytes for lc in cost.layers)
    yield embedding.forward_live_bytes / GIB
    yield (gradient_bytes + embedding.backward_live_bytes) / GIB
    yield (gradient_bytes + embedding.gradient_bytes) / GIB
