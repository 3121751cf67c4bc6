"""A training step for two levels: what its layers hold, when each is used, what lives across them.

Scope: plain data, and what is read off it: a step as one flat problem, and as a smaller one in
which most uses are one buffer each. Solving is `two_level.py`'s.

Times within a block are relative to the moment at which it is used; a use lives as long as its
problem does, to the last `upper`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from planner.layout.contracts import Buffer, Problem


@dataclass(frozen=True, slots=True)
class Use:
    """One layer's forward or backward: the block of that name, from the moment `start` on. In the
    flat problem its buffers are named `owner/buffer`; `owner` None: the use's own id.
    """

    id: str
    block: str
    start: int
    owner: str | None = None

    def name_of(self, buffer: str) -> str:
        return f"{self.id if self.owner is None else self.owner}/{buffer}"

    def placed(self, buffer: Buffer, alignment_bytes: int) -> Buffer:
        """A buffer of the block in this use's place in time."""
        return Buffer(
            self.name_of(buffer.id),
            self.start + buffer.lower,
            self.start + buffer.upper,
            buffer.size_bytes,
            alignment_bytes,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """`blocks` by name, the `uses` of them, and the `buffers` that live across uses; every offset
    is a multiple of `alignment_bytes`.

    Raises:
        ValueError: when a use names no block, or a block begins before 0.
    """

    blocks: Mapping[str, Problem]
    uses: tuple[Use, ...]
    buffers: tuple[Buffer, ...]
    alignment_bytes: int

    def __post_init__(self) -> None:
        for use in self.uses:
            if use.block not in self.blocks:
                there = ", ".join(self.blocks)
                raise ValueError(f"use {use.id}: no block {use.block!r}: there is {there}")
        for name, problem in self.blocks.items():
            begun = min((buffer.lower for buffer in problem.buffers), default=0)
            if begun < 0:
                raise ValueError(f"block {name}: begins at {begun}: it takes times from 0 on")

    def flat(self) -> Problem:
        """The whole step as one problem."""
        inner = [buffer for use in self.uses for buffer in self.opened(use)]
        return Problem((*self.buffers, *inner), self.alignment_bytes)

    def opened(self, use: Use) -> Iterator[Buffer]:
        """Every buffer of a use."""
        problem = self.blocks[use.block]
        return (use.placed(b, problem.alignment_of(b)) for b in problem.buffers)

    def closed(self, use: Use, height_bytes: int) -> Iterator[Buffer]:
        """A use as one buffer, if there is something in it. It begins where every buffer of the
        block may.
        """
        problem = self.blocks[use.block]
        if problem.buffers:
            alignment = math.lcm(*map(problem.alignment_of, problem.buffers))
            stop = use.start + duration_of(problem)
            yield Buffer(use.id, use.start, stop, height_bytes, alignment)

    def reduced(self, heights_bytes: Mapping[str, int], opened: Collection[str] = ()) -> Problem:
        """Level two: uses named in `opened` with every buffer of theirs, each other one as one
        buffer of its block's height.
        """
        inner = (
            buffer
            for use in self.uses
            for buffer in (
                self.opened(use) if use.id in opened else self.closed(use, heights_bytes[use.block])
            )
        )
        return Problem((*self.buffers, *inner), self.alignment_bytes)


def duration_of(problem: Problem) -> int:
    return max((buffer.upper for buffer in problem.buffers), default=0)


def aligned(problem: Problem, alignment_bytes: int) -> Problem:
    """The problem with what a step asks of every offset, too."""
    return replace(problem, alignment_bytes=math.lcm(problem.alignment_bytes, alignment_bytes))
