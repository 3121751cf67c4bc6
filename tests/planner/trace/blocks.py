"""Blocks made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from planner.trace.contracts import (
    Allocation,
    Block,
    Kind,
    OperationCost,
    Pass,
    Repeat,
    Segment,
)


def allocation(size_bytes: int, born: int, freed: int | None) -> Allocation:
    """One of no particular kind."""
    return Allocation(0, size_bytes, born, freed, Segment.PRE, Kind.TRANSIENT)


def operations(count: int) -> tuple[OperationCost, ...]:
    """Operations without costs."""
    return tuple(
        OperationCost(index, "op", 0, 0, Segment.PRE, Pass.FORWARD) for index in range(count)
    )


def block(count: int, allocations: Sequence[Allocation], repeats: Sequence[Repeat] = ()) -> Block:
    """A block of `count` operations."""
    return Block(operations(count), tuple(allocations), tuple(repeats))
