"""What a planned step's memory comes to: an arena laid out beforehand, beside what PyTorch's
caching allocator would reserve for the same tensors.

Scope: solving and replaying; whose lives they are is `lives.py`'s. Steps of many layers have tens
of thousands of tensors: their two levels are solved, and the flat problem gives the bound. Where
those differ, the flat problem is solved with small tensors put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memo.planning.lives import SMALL_BYTES, StepLives, step_lives
from memo.planning.runs import peak_bytes
from planner.allocator import Lifetime, events_of, replay
from planner.contracts import SwapPlan
from planner.layout import (
    CUDA_ALIGNMENT_BYTES,
    Block,
    Buffer,
    Layout,
    Problem,
    Solution,
    solve,
    solve_two_level,
)
from planner.trace import StepTrace

TIME_LIMIT_S = 4.0

SMALL_SHARE = 1 / 512
"""Of the bound: tensors below are put together where the flat problem is to be solved."""


@dataclass(frozen=True, slots=True)
class Arena:
    """`height_bytes` of device memory beside the model states, of which no layout takes less than
    `lower_bound_bytes`; `reserved_bytes`: the caching allocator's, with its default settings and
    nothing else on the device.
    """

    height_bytes: int
    lower_bound_bytes: int
    reserved_bytes: int
    problem: Problem
    layout: Layout


def lay_out(
    trace: StepTrace,
    swap: SwapPlan,
    *,
    gradient_share: float = 1.0,
    time_limit_s: float = TIME_LIMIT_S,
) -> Arena:
    """Lay a planned step out in about `time_limit_s`; see `step_lives`."""
    lives = step_lives(trace, swap, gradient_share=gradient_share)
    blocks = _blocks(lives, time_limit_s / 4)
    step = solve(_level_two(lives, blocks), time_limit_s=time_limit_s / 4)
    problem, layout = flat_problem(lives), _absolute(lives, blocks, step)
    bound = _bound_bytes(problem)
    reserved = reserved_bytes(problem)
    if layout.height_bytes > bound:
        small = max(SMALL_BYTES, round(bound * SMALL_SHARE))
        coarse = step_lives(trace, swap, gradient_share=gradient_share, small_bytes=small)
        found = solve_two_level(
            coarse.blocks, coarse.uses, coarse.buffers, time_limit_s=time_limit_s / 2
        )
        if found.solution.height_bytes < layout.height_bytes:
            problem, layout = found.problem, found.solution.layout
    return Arena(layout.height_bytes, bound, reserved, problem, layout)


def reserved_bytes(problem: Problem) -> int:
    """What the caching allocator reserves at most when the buffers are allocated as they come."""
    lives = [
        Lifetime(number, buffer.size_bytes, buffer.lower, buffer.upper)
        for number, buffer in enumerate(problem.buffers)
    ]
    return replay(events_of(lives)).usage.reserved_bytes.peak


def _blocks(lives: StepLives, time_limit_s: float) -> dict[str, Block]:
    share = time_limit_s / max(1, len(lives.blocks))
    return {
        name: Block(problem, solve(problem, time_limit_s=share))
        for name, problem in lives.blocks.items()
        if problem.buffers
    }


def _level_two(lives: StepLives, blocks: Mapping[str, Block]) -> Problem:
    uses = (
        Buffer(
            use.id,
            use.start,
            use.start + blocks[use.block].duration,
            blocks[use.block].solution.height_bytes,
        )
        for use in lives.uses
    )
    return Problem((*lives.buffers, *uses))


def flat_problem(lives: StepLives) -> Problem:
    """The whole step as one problem."""
    inner = (
        replace(
            buffer,
            id=f"{use.id}/{buffer.id}",
            lower=use.start + buffer.lower,
            upper=use.start + buffer.upper,
        )
        for use in lives.uses
        for buffer in lives.blocks[use.block].buffers
    )
    return Problem((*lives.buffers, *inner))


def _absolute(lives: StepLives, blocks: Mapping[str, Block], step: Solution) -> Layout:
    """Every tensor's offset: its block's, and its own within."""
    offsets = {buffer.id: step.layout.offsets_bytes[buffer.id] for buffer in lives.buffers}
    for use in lives.uses:
        start = step.layout.offsets_bytes[use.id]
        inner = blocks[use.block].solution.layout.offsets_bytes
        offsets |= {f"{use.id}/{name}": start + offset for name, offset in inner.items()}
    return Layout(offsets, step.height_bytes)


def _bound_bytes(problem: Problem) -> int:
    unit = CUDA_ALIGNMENT_BYTES
    return peak_bytes((b.lower, b.upper, -(-b.size_bytes // unit) * unit) for b in problem.buffers)
