"""Cut blocks: the same buffers as before, in parts that no large buffer begins or ends in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Buffer, Problem, Step, Use
from planner.layout.cutting import cut_blocks
from tests.planner.layout.reference import problem_of, problems


def _step(block: Problem, starts: list[int], around: Problem) -> Step:
    moved = (
        Buffer(b.id, b.lower + 2, b.upper + 2, b.size_bytes, b.alignment_bytes)
        for b in block.buffers
    )
    uses = tuple(Use(f"use{i}", "block", start) for i, start in enumerate(starts))
    blocks = {"block": Problem(tuple(moved), block.alignment_bytes)}
    return Step(blocks, uses, around.buffers, around.alignment_bytes)


def _alignments(problem: Problem) -> dict[str, tuple[Buffer, int]]:
    return {b.id: (b, problem.alignment_of(b)) for b in problem.buffers}


@settings(max_examples=200, deadline=None)
@given(
    problems(most=6), st.lists(st.integers(0, 20), max_size=3), problems(most=4), st.integers(1, 14)
)
def test_no_large_buffer_begins_or_ends_within_a_part(
    block: Problem, starts: list[int], around: Problem, least_bytes: int
) -> None:
    step = _step(block, starts, around)
    cut = cut_blocks(step, least_bytes)
    assert _alignments(cut.flat()) == _alignments(step.flat())
    events = {t for b in around.buffers if b.size_bytes >= least_bytes for t in (b.lower, b.upper)}
    for use in cut.uses:
        lives = list(cut.opened(use))
        for event in events:
            assert not min(b.lower for b in lives) < event < max(b.upper for b in lives)


def test_moments_of_every_use_cut_the_block_that_they_share() -> None:
    block = problem_of((0, 2, 5), (2, 4, 5), (4, 8, 5), (1, 6, 3))
    around = (Buffer("a", 4, 30, 9), Buffer("b", 22, 24, 9), Buffer("small", 21, 40, 1))
    step = Step({"block": block}, (Use("u", "block", 0), Use("v", "block", 20)), around, 1)
    cut = cut_blocks(step, 2)
    assert {use.id: (use.block, use.start) for use in cut.uses} == {
        "u#0": ("block#0", 0), "u#2": ("block#2", 2), "u#4": ("block#4", 4),
        "v#0": ("block#0", 20), "v#2": ("block#2", 22), "v#4": ("block#4", 24),
    }  # fmt: skip
    assert [b.id for b in cut.buffers] == ["a", "b", "small", "u/b3", "v/b3"]
    assert cut.blocks["block#4"].buffers == (Buffer("b2", 0, 4, 5),)


def test_without_large_buffers_nothing_is_cut() -> None:
    block = problem_of((0, 2, 5), (1, 6, 3))
    step = Step({"block": block}, (Use("u", "block", 0),), (Buffer("a", 1, 9, 3),), 1)
    assert len(cut_blocks(step, 4).uses) == 1
    assert [use.id for use in cut_blocks(step, 3).uses] == ["u#1"]  # "u#0" would be empty
    assert [b.id for b in cut_blocks(step, 3).buffers] == ["a", "u/b0"]
