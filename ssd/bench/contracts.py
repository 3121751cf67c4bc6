"""What is measured, as data: the plan, a case of it, what one pass showed, and the result.

Scope: plain data and one protocol. GB are 1e9 bytes; bandwidths are bytes a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from ssd.contracts import EngineKind, SpoolFile

MIB = 1 << 20
GIB = 1 << 30

FIO = "fio"
FIO_LARGE_PAGES = "fio-thp"
"""fio with its memory on 2 MiB pages, as ours is."""

ENGINES = (EngineKind.URING, EngineKind.THREADS)


class Op(StrEnum):
    """`MIXED`: blocks are written and read in turn, half of them each, in flight together."""

    WRITE = "write"
    READ = "read"
    MIXED = "mixed"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchPlan:
    """`engines` None: all that work here. Each pass goes once over a file of `size_bytes`.

    Raises:
        ValueError: when an argument is wrong by itself, or no case is left.
    """

    size_bytes: int = 2 * GIB
    block_bytes: tuple[int, ...] = (1 * MIB, 4 * MIB, 16 * MIB)
    depths: tuple[int, ...] = (4, 16, 64)
    rounds: int = 3
    engines: tuple[EngineKind, ...] | None = None
    fio: bool = True

    def __post_init__(self) -> None:
        for name, values in (("block_bytes", self.block_bytes), ("depths", self.depths)):
            if not values or min(values) < 1:
                raise ValueError(f"{name} is {values}: it takes numbers of 1 or more")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}: it takes 1 or more")
        if self.engines is not None and not set() < set(self.engines) <= set(ENGINES):
            raise ValueError(
                f"engines is {self.engines}: it takes one or both of {', '.join(ENGINES)}"
            )
        if not self.settings():
            least_bytes = 4 * min(self.block_bytes) * min(self.depths)
            raise ValueError(
                f"size_bytes is {self.size_bytes}: it takes {least_bytes} or more, four times the "
                "smallest block at the least depth"
            )

    def settings(self) -> list[tuple[int, int]]:
        """Blocks and depths that hold at most a quarter of the file in flight: with more, a pass
        would show little but its start and its end.
        """
        pairs = itertools.product(sorted(set(self.block_bytes)), sorted(set(self.depths)))
        return [(block, depth) for block, depth in pairs if 4 * block * depth <= self.size_bytes]

    @property
    def in_flight_bytes(self) -> int:
        """At most, over all settings: the host memory that it takes."""
        return max(block * depth for block, depth in self.settings())

    def written_bytes(self, engines: int) -> int:
        """What goes to the disk with so many engines: wear."""
        passes = len(self.settings()) * self.rounds * engines
        return self.size_bytes + passes * (self.size_bytes + self.size_bytes // 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One pass over the file."""

    op: Op
    block_bytes: int
    depth: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one pass showed."""

    bytes_per_s: float
    cpu_s_per_gb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Medians over `rounds` passes. `spread`: the largest bandwidth less the smallest, over the
    median.
    """

    directory: Path
    engine: str
    op: Op
    block_bytes: int
    depth: int
    bytes_per_s: float
    cpu_s_per_gb: float
    rounds: int
    spread: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"directory": str(self.directory), "op": str(self.op)}


@dataclass(frozen=True, slots=True, eq=False)
class Rig:
    """What all engines are measured on: one file, and memory for what is in flight."""

    file: SpoolFile
    memory: memoryview

    def blocks(self, case: Case) -> int:
        """How many whole blocks the file has."""
        return self.file.size_bytes // case.block_bytes

    def buffers(self, case: Case) -> Iterator[memoryview]:
        """One for each block in flight."""
        for index in range(case.depth):
            yield self.memory[index * case.block_bytes :][: case.block_bytes]


class Subject(Protocol):
    """What is measured."""

    @property
    def name(self) -> str: ...

    def measure(self, rig: Rig, case: Case) -> Sample:
        """One pass.

        Raises:
            SpillError: when the disk or the engine fails.
        """
