"""MEMO's two levels: layers laid out by class, then the step with each layer as one block.

Scope: putting solved problems into a larger one, and the result's absolute offsets. Source: P. Zhao
et al., "Memo: Fine-grained Tensor Management For Ultra-long Context LLM Training", SIGMOD 2025,
arXiv 2407.12117, its bi-level memory planning: layers of one class are alike, so the forward and
the backward of each are laid out once, and what is left of the step is small.

A block takes its height for as long as it lives, so two levels may end above the flat problem's
bound; then, in what is left of the time, the flat problem is solved from there on.

Times within a block are relative to the moment at which it is used; a use lives as long as its
problem does, to the last `upper`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.layout.contracts import (
    CUDA_ALIGNMENT_BYTES,
    Buffer,
    Layout,
    OnProgress,
    Problem,
    Solution,
)
from planner.layout.portfolio import TIME_LIMIT_S, check_time_limit, solve
from planner.layout.sections import layout_at

LEVEL_ONE_SHARE = 0.5
"""Of the time limit, at most, for all the blocks."""

STEP_SHARE = 0.5
"""Of what is then left, at most, for level two; the rest is for the flat problem."""

MINIMAL_S = 0.001
"""A stage that comes too late still gets one greedy placement."""


@dataclass(frozen=True, slots=True)
class Block:
    """A problem and its solution, to be used as one buffer."""

    problem: Problem
    solution: Solution

    @property
    def duration(self) -> int:
        return max((buffer.upper for buffer in self.problem.buffers), default=0)

    @property
    def alignment_bytes(self) -> int:
        """Where the block begins must be a good offset for every buffer in it."""
        return math.lcm(*map(self.problem.alignment_of, self.problem.buffers))


@dataclass(frozen=True, slots=True)
class Use:
    """One layer's forward or backward: the block of that name, from the moment `start` on."""

    id: str
    block: str
    start: int


@dataclass(frozen=True, slots=True)
class TwoLevelSolution:
    """`blocks` by name are level one, `step` is level two, in which a use is a buffer with the
    use's id. `problem` and `solution` are the whole as one flat problem, in which a buffer of a use
    is named `use/buffer`.
    """

    blocks: Mapping[str, Block]
    step: Solution
    problem: Problem
    solution: Solution


def solve_two_level(
    blocks: Mapping[str, Problem],
    uses: Sequence[Use],
    buffers: Sequence[Buffer] = (),
    *,
    alignment_bytes: int = CUDA_ALIGNMENT_BYTES,
    goal_bytes: int | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    on_progress: OnProgress | None = None,
) -> TwoLevelSolution:
    """Lay out each of `blocks` (times from 0), then the step of `uses` and the `buffers` that live
    across layers, at multiples of `alignment_bytes`. `time_limit_s` and `goal_bytes` are for all of
    it, as in `solve`.

    Raises:
        ValueError: when a use names no block, a block begins before 0, two ids are equal, or the
            time limit is not above 0.
        LayoutError: when a stage made an invalid layout.
    """
    check_time_limit(time_limit_s)
    _check(blocks, uses)
    clock = _Clock(time_limit_s)
    blocks = {name: _aligned(inner, alignment_bytes) for name, inner in blocks.items()}
    problem = _flat(blocks, uses, buffers, alignment_bytes)
    solved = _solve_blocks(blocks, clock, on_progress)
    step = solve(
        Problem((*buffers, *_as_buffers(solved, uses)), alignment_bytes),
        goal_bytes=goal_bytes,
        time_limit_s=clock.left_s(STEP_SHARE),
        on_progress=on_progress,
    )
    solution = solve(
        problem,
        goal_bytes=goal_bytes,
        time_limit_s=clock.left_s(),
        known=_absolute(problem, solved, uses, step.layout),
        on_progress=on_progress,
    )
    return TwoLevelSolution(solved, step, problem, replace(solution, solve_s=clock.elapsed_s()))


class _Clock:
    """Shares of one time limit."""

    def __init__(self, time_limit_s: float) -> None:
        self._start_s = time.monotonic()
        self._time_limit_s = time_limit_s

    def elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    def left_s(self, share: float = 1.0) -> float:
        return max(MINIMAL_S, share * (self._time_limit_s - self.elapsed_s()))


def _solve_blocks(
    blocks: Mapping[str, Problem], clock: _Clock, on_progress: OnProgress | None
) -> dict[str, Block]:
    """Level one: what a block leaves of its share of the time is for the others."""
    solved: dict[str, Block] = {}
    for done, (name, problem) in enumerate(blocks.items()):
        share = LEVEL_ONE_SHARE / (len(blocks) - done)
        solution = solve(problem, time_limit_s=clock.left_s(share), on_progress=on_progress)
        solved[name] = Block(problem, solution)
    return solved


def _check(blocks: Mapping[str, Problem], uses: Sequence[Use]) -> None:
    for use in uses:
        if use.block not in blocks:
            raise ValueError(f"use {use.id}: no block {use.block!r}: there is {', '.join(blocks)}")
    for name, problem in blocks.items():
        begun = min((buffer.lower for buffer in problem.buffers), default=0)
        if begun < 0:
            raise ValueError(f"block {name}: begins at {begun}: it takes times from 0 on")


def _aligned(problem: Problem, alignment_bytes: int) -> Problem:
    """Return the problem with what the step asks of every offset, too."""
    return replace(problem, alignment_bytes=math.lcm(problem.alignment_bytes, alignment_bytes))


def _flat(
    blocks: Mapping[str, Problem],
    uses: Sequence[Use],
    buffers: Sequence[Buffer],
    alignment_bytes: int,
) -> Problem:
    """The whole step as one problem."""
    inner = [
        Buffer(
            f"{use.id}/{buffer.id}",
            use.start + buffer.lower,
            use.start + buffer.upper,
            buffer.size_bytes,
            blocks[use.block].alignment_of(buffer),
        )
        for use in uses
        for buffer in blocks[use.block].buffers
    ]
    return Problem((*buffers, *inner), alignment_bytes)


def _as_buffers(blocks: Mapping[str, Block], uses: Sequence[Use]) -> Iterator[Buffer]:
    for use in uses:
        block = blocks[use.block]
        if block.problem.buffers:
            stop = use.start + block.duration
            height_bytes = block.solution.height_bytes
            yield Buffer(use.id, use.start, stop, height_bytes, block.alignment_bytes)


def _absolute(
    problem: Problem, blocks: Mapping[str, Block], uses: Sequence[Use], step: Layout
) -> Layout:
    """Return the flat problem's layout in which each buffer lies in its block."""
    offsets = {}
    names = {use.id for use in uses}
    for use in uses:
        inner = blocks[use.block].solution.layout.offsets_bytes
        for name, offset in inner.items():
            offsets[f"{use.id}/{name}"] = step.offsets_bytes[use.id] + offset
    outer = {name: at for name, at in step.offsets_bytes.items() if name not in names}
    return layout_at(problem, {**outer, **offsets})
