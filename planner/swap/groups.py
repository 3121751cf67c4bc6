"""Layers that are alike are decided together, and what was decided for a group is dealt out to its
layers.

Scope: grouping and dealing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from planner.swap.contracts import LayerCost

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Group:
    """`count` layers of one cost, one after another."""

    cost: LayerCost
    count: int

    @property
    def tiles(self) -> int:
        return self.cost.tiles * self.count


def group_layers(layers: Sequence[LayerCost], max_groups: int) -> tuple[Group, ...]:
    """Runs of equal layers, cut into groups of about `len(layers) / max_groups`; in forward order.
    More groups than that come out where runs are short.
    """
    size = -(-len(layers) // max_groups)
    groups = []
    for cost, run in groupby(layers):
        groups += [Group(cost, count) for count in _parts(len(list(run)), size)]
    return tuple(groups)


def _parts(total: int, size: int) -> Iterator[int]:
    parts = -(-total // size)
    for index in range(parts):
        yield (index + 1) * total // parts - index * total // parts


def deal(totals: Mapping[K, int], first: K, hands: int) -> list[dict[K, int]]:
    """Deal `totals` of each kind to hands of equal size, every kind as even as can be.

    The kind `first` is spread by floors: no run of hands from the first on has more of it than its
    even share. So what of the device fits at the end of a group of layers fits within it.
    """
    rest = {kind: total for kind, total in totals.items() if kind != first}
    hand_size, remainder = divmod(sum(totals.values()), hands)
    assert remainder == 0
    given: dict[K, int] = dict.fromkeys(rest, 0)
    result = []
    for index in range(hands):
        own = totals.get(first, 0)
        hand = {first: (index + 1) * own // hands - index * own // hands}
        for _ in range(hand_size - hand[first]):
            kind = _most_due(rest, given)
            given[kind] += 1
            hand[kind] = hand.get(kind, 0) + 1
        result.append({kind: count for kind, count in hand.items() if count})
    return result


def spread(totals: Mapping[K, int]) -> list[K]:
    """One after another, every kind as even as can be: how the runtime lays placements over a
    layer's tiles.
    """
    given: dict[K, int] = dict.fromkeys(totals, 0)
    order = []
    for _ in range(sum(totals.values())):
        order.append(_most_due(totals, given))
        given[order[-1]] += 1
    return order


def _most_due(totals: Mapping[K, int], given: Mapping[K, int]) -> K:
    """The kind that is furthest behind its even share; never one that is dealt out."""
    number, count = sum(given.values()) + 1, sum(totals.values())
    return max(totals, key=lambda kind: totals[kind] * number / count - given[kind])
