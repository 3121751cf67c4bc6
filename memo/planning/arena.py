"""What a planned step's memory comes to: an arena laid out beforehand, beside what PyTorch's
caching allocator would reserve for the same tensors.

Scope: solving and replaying; whose lives they are is `lives.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from memo.planning.lives import StepLives, step_lives
from planner.allocator import Lifetime, events_of, replay
from planner.contracts import SwapPlan
from planner.layout import (
    CUDA_ALIGNMENT_BYTES,
    Layout,
    Problem,
    Solution,
    Step,
    solve_two_level,
)
from planner.trace import StepTrace

TIME_LIMIT_S = 8.0


@dataclass(frozen=True, slots=True)
class Arena:
    """Device memory beside the model states: the problem with every tensor, and its best layout;
    `reserved_bytes`: the caching allocator's, with its default settings and nothing else on the
    device.
    """

    problem: Problem
    solution: Solution
    reserved_bytes: int

    @property
    def layout(self) -> Layout:
        return self.solution.layout

    @property
    def height_bytes(self) -> int:
        return self.solution.height_bytes

    @property
    def lower_bound_bytes(self) -> int:
        """No layout takes less."""
        return self.solution.lower_bound_bytes


def lay_out(
    trace: StepTrace,
    swap: SwapPlan,
    *,
    gradient_share: float = 1.0,
    time_limit_s: float = TIME_LIMIT_S,
) -> Arena:
    """Lay a planned step out in about `time_limit_s`, mostly less; see `step_lives`.

    Raises:
        ValueError: when the plan has another number of layers than the trace.
    """
    lives = step_lives(trace, swap, gradient_share=gradient_share)
    found = solve_two_level(lives.blocks, lives.uses, lives.buffers, time_limit_s=time_limit_s)
    return Arena(found.problem, found.solution, reserved_bytes(found.problem))


def reserved_bytes(problem: Problem) -> int:
    """What the caching allocator reserves at most when the buffers are allocated as they come."""
    lives = [
        Lifetime(number, buffer.size_bytes, buffer.lower, buffer.upper)
        for number, buffer in enumerate(problem.buffers)
    ]
    return replay(events_of(lives)).usage.reserved_bytes.peak


def flat_problem(lives: StepLives) -> Problem:
    """The whole step as one problem."""
    return Step(lives.blocks, lives.uses, lives.buffers, CUDA_ALIGNMENT_BYTES).flat()
