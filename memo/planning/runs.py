"""Blocks of a step in their places in time, and what a storage in one stands for.

Scope: reading a trace's blocks; what is made of them is `lives.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.trace import Allocation, Block, Kind, Pass, Segment


@dataclass(frozen=True, slots=True)
class BlockRun:
    """One block in its place in the step: operation k of it is at `start + k`."""

    id: str
    part: str
    direction: Pass
    block: Block
    start: int

    @property
    def stop(self) -> int:
        return self.start + max(1, len(self.block.operations))

    def first(self, segment: Segment, default: int) -> int:
        """Where a segment begins."""
        operations = self.block.operations
        found = (op.index for op in operations if op.segment is segment)
        return self.start + next(found, default)

    def of_kind(self, kind: Kind) -> list[Allocation]:
        return [a for a in self.block.allocations if a.kind is kind]

    def end_of(self, storage: int) -> int | None:
        """When a storage that was there at the start is freed; None: not here."""
        for a in self.block.allocations:
            if a.id == storage and a.born < 0 and a.freed is not None:
                return self.start + a.freed
        return None


def block_name(run: BlockRun) -> str:
    return f"{run.part} {run.direction}"


def is_gradient(allocation: Allocation) -> bool:
    return allocation.kind is Kind.GRADIENT and allocation.born >= 0


def entering_storages(run: BlockRun, kind: Kind) -> list[Allocation]:
    """Storages of a kind that are there when the block begins, and freed in it."""
    return [a for a in run.of_kind(kind) if a.born < 0 and a.freed is not None]


def stands_for(block: Block, allocation: Allocation) -> int:
    """How many storages it stands for: those of all tiles where it is made in a tile that stands
    for others and outlives the next one. What the next tile frees is one at a time.
    """
    born, freed = allocation.born, allocation.freed
    for repeat in block.repeats:
        if repeat.start <= born < repeat.stop:
            next_stop = 2 * repeat.stop - repeat.start
            return 1 if freed is not None and freed <= next_stop else 1 + repeat.times
    return 1


def peak_bytes(lives: Iterator[tuple[int, int, int]]) -> int:
    """The largest sum of sizes that live at a time; each is (born, freed, size)."""
    changes: list[tuple[int, int]] = []
    for born, freed, size in lives:
        changes += [(born, size), (freed, -size)]
    live = peak = 0
    for _, change in sorted(changes):
        live += change
        peak = max(peak, live)
    return peak
