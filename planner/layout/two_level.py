"""MEMO's two levels: layers laid out by class, then the step with most layers as one block each.

Scope: which problems are solved on the way to a layout of a whole step, and for how long. Source:
P. Zhao et al., "Memo: Fine-grained Tensor Management For Ultra-long Context LLM Training", SIGMOD
2025, arXiv 2407.12117, its bi-level memory planning: layers of one class are alike, so the forward
and the backward of each are laid out once, and what is left of the step is small.

A block takes its height for as long as it lives, so two levels may end above the flat problem's
bound, by 10 per cent on traced steps. Four things are added:

- a use that could not be a block within the bound (mostly one or two of a step, where its memory is
  highest) is *opened*: its buffers take part in level two themselves;
- what lives near the highest moments of level two is laid out first, the rest around it
  (`core.py`);
- where that is not enough, blocks are cut in time (`cutting.py`), at some moments and then at more;
- a flat problem that is small is solved as it is, from the best layout on.

Each comes only where the ones before ended above the bound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from planner.layout.contracts import (
    CUDA_ALIGNMENT_BYTES,
    Buffer,
    Layout,
    LayoutError,
    OnProgress,
    Problem,
    Solution,
)
from planner.layout.core import solve_around_core
from planner.layout.cutting import cut_blocks
from planner.layout.portfolio import TIME_LIMIT_S, check_time_limit, solve
from planner.layout.sections import cut_sections, layout_at
from planner.layout.step import Step, Use, aligned
from planner.layout.validator import violations


class Round(NamedTuple):
    """Blocks that a buffer of one part in `part` of the bound cuts (None: no cuts), of which those
    are opened that live where more than `most` of the bound would be taken; and shares of the time
    left: for level two as it is, then for its crowded core first.
    """

    name: str
    part: int | None
    most: float
    share: float
    core_share: float


ROUNDS = (
    Round("blocks", None, most=1.0, share=0.1, core_share=0.45),
    Round("blocks, cut", 1024, most=1.0, share=0.1, core_share=0.6),
    Round("blocks, cut finely", 4096, most=0.99, share=0.1, core_share=0.9),
)
"""Little for searches of the whole: of 287 traced steps few are not at their bound soon. Each of
these has a core that is solved within 1 to 4 s, of blocks as they are or of cut ones, where
searches of all go on for 8.
"""

LEVEL_ONE_SHARE = 0.5
"""Of a round's time, at most, for all the blocks."""

MOST_FLAT_BUFFERS = 4000
"""Of a flat problem that is solved as it is: one greedy placement of more takes seconds."""

MINIMAL_S = 0.001
"""A stage that comes too late still gets one greedy placement."""


@dataclass(frozen=True, slots=True)
class TwoLevelSolution:
    """The whole step as one flat problem, in which a buffer of a use is named `use/buffer`, and the
    best layout of it.
    """

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
    it, as in `solve`; beyond the limit, reading and checking a step of 40,000 buffers takes about a
    second.

    Raises:
        ValueError: when a use names no block, a block begins before 0, two ids are equal, or the
            time limit is not above 0.
        LayoutError: when a stage made an invalid layout.
    """
    check_time_limit(time_limit_s)
    whole = {name: aligned(block, alignment_bytes) for name, block in blocks.items()}
    step = Step(whole, tuple(uses), tuple(buffers), alignment_bytes)
    run = _Run(step, goal_bytes, time.monotonic() + time_limit_s, on_progress)
    for each in ROUNDS:
        if run.is_open:
            run.two_levels(each)
    if run.is_open and len(run.problem.buffers) <= MOST_FLAT_BUFFERS:
        run.flat()
    return TwoLevelSolution(run.problem, run.solution())


@dataclass(slots=True)
class _Run:
    """A step on its way through the rounds."""

    step: Step
    goal_bytes: int | None
    deadline_s: float
    on_progress: OnProgress | None
    problem: Problem = field(init=False)
    lower_bytes: int = field(init=False)
    best: Layout | None = field(init=False, default=None)
    solver: str = field(init=False, default="")
    start_s: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.problem = self.step.flat()
        sections = cut_sections(self.problem)
        self.lower_bytes = sections.bound * sections.unit_bytes

    @property
    def is_open(self) -> bool:
        """Whether a lower layout is wanted, and there is time, or none yet."""
        if self.best is None:
            return True
        return self.best.height_bytes > self.wanted_bytes and time.monotonic() < self.deadline_s

    @property
    def wanted_bytes(self) -> int:
        """Lower than this there is nothing to gain."""
        return max(self.lower_bytes, self.goal_bytes or 0)

    def two_levels(self, each: Round) -> None:
        step = self.step
        if each.part is not None:
            step = cut_blocks(step, max(1, self.lower_bytes // each.part))
        time_s = self._left_s(each.share)
        blocks = self._level_one(step, time_s * LEVEL_ONE_SHARE)
        opened = _too_high(step, _heights(blocks), int(each.most * self.lower_bytes))
        reduced = step.reduced(_heights(blocks), opened)
        two = solve(
            reduced,
            goal_bytes=self.wanted_bytes,
            time_limit_s=time_s,
            on_progress=self.on_progress,
        )
        self._offer(_absolute(self.problem, step, blocks, two.layout), f"{each.name}: {two.solver}")
        if self.is_open:
            self._around_core(each, step, blocks, reduced)

    def _around_core(
        self, each: Round, step: Step, blocks: Mapping[str, Solution], reduced: Problem
    ) -> None:
        assert self.best is not None
        found = solve_around_core(
            reduced,
            goal_bytes=self.wanted_bytes,
            below_bytes=self.best.height_bytes,
            time_limit_s=self._left_s(each.core_share),
            on_progress=self.on_progress,
        )
        if found is not None:
            self._offer(_absolute(self.problem, step, blocks, found), f"{each.name}: core first")

    def flat(self) -> None:
        """Solve the whole as it is, which may also prove that nothing is lower."""
        found = solve(
            self.problem,
            goal_bytes=self.goal_bytes,
            time_limit_s=self._left_s(1.0),
            known=self.best,
            on_progress=self.on_progress,
        )
        self.lower_bytes = found.lower_bound_bytes
        if found.optimal:  # by a proof, perhaps, and not by a lower layout
            self.best, self.solver = found.layout, f"flat: {found.solver}"
        self._offer(found.layout, f"flat: {found.solver}")

    def solution(self) -> Solution:
        """What was found, once the validator has passed it."""
        assert self.best is not None
        found = violations(self.problem, self.best)
        if found:
            raise LayoutError(f"{self.solver} made an invalid layout: {found[0]}")
        return Solution(self.best, self.lower_bytes, self.solver, time.monotonic() - self.start_s)

    def _level_one(self, step: Step, time_s: float) -> dict[str, Solution]:
        """What a block leaves of its share of the time is for the others."""
        end_s = time.monotonic() + time_s
        solved: dict[str, Solution] = {}
        for done, (name, problem) in enumerate(step.blocks.items()):
            share_s = max(MINIMAL_S, (end_s - time.monotonic()) / (len(step.blocks) - done))
            solved[name] = solve(problem, time_limit_s=share_s, on_progress=self.on_progress)
        return solved

    def _offer(self, layout: Layout, solver: str) -> None:
        if self.best is None or layout.height_bytes < self.best.height_bytes:
            self.best, self.solver = layout, solver

    def _left_s(self, share: float) -> float:
        return max(MINIMAL_S, share * (self.deadline_s - time.monotonic()))


def _heights(blocks: Mapping[str, Solution]) -> dict[str, int]:
    return {name: solution.height_bytes for name, solution in blocks.items()}


def _too_high(step: Step, heights_bytes: Mapping[str, int], most_bytes: int) -> set[str]:
    """Uses that, as blocks, and what lives beside them are more than `most_bytes` at a moment."""
    reduced = step.reduced(heights_bytes)
    sections = cut_sections(reduced)
    over = sections.totals * sections.unit_bytes > most_bytes
    names = {use.id for use in step.uses}
    ranges = zip(reduced.buffers, sections.first.tolist(), sections.last.tolist(), strict=True)
    return {b.id for b, first, last in ranges if b.id in names and over[first:last].any()}


def _absolute(
    problem: Problem, step: Step, blocks: Mapping[str, Solution], found: Layout
) -> Layout:
    """The flat problem's layout in which each buffer lies in its block."""
    offsets = dict(found.offsets_bytes)
    for use in step.uses:
        start = offsets.pop(use.id, None)
        if start is None:  # opened, or empty
            continue
        inner = blocks[use.block].layout.offsets_bytes
        offsets |= {use.name_of(name): start + offset for name, offset in inner.items()}
    return layout_at(problem, offsets)
