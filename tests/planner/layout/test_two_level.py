"""Two levels: absolute offsets, valid as one flat problem, and at the bound where a step nests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Buffer, Problem, Use, solve_two_level, violations
from tests.planner.layout.reference import largest_live_sum, problem_of, problems

FORWARD = problem_of((0, 3, 7), (1, 4, 5), (3, 6, 9), (5, 8, 2), alignment_bytes=512)
BACKWARD = problem_of((0, 2, 1500), (1, 5, 700), (4, 6, 3000), alignment_bytes=512)


def step(layers: int) -> tuple[list[Use], list[Buffer]]:
    """Each layer's forward, then its backward in reverse; x lives from one to the other."""
    uses = [Use(f"f{layer}", "forward", 10 * layer) for layer in range(layers)]
    uses += [Use(f"b{layer}", "backward", 20 * layers - 10 * layer) for layer in range(layers)]
    kept = [
        Buffer(f"x{layer}", 10 * layer, 20 * layers - 10 * layer + 6, 2048 + 512 * layer)
        for layer in range(layers)
    ]
    return uses, kept


def test_every_layer_of_a_step_is_in_its_block() -> None:
    uses, kept = step(6)
    blocks = {"forward": FORWARD, "backward": BACKWARD}
    result = solve_two_level(blocks, uses, kept, time_limit_s=30)
    assert len(result.problem.buffers) == 6 * (4 + 3) + 6
    assert violations(result.problem, result.solution.layout) == []
    assert result.solution.optimal
    assert result.solution.height_bytes == largest_live_sum(result.problem)
    assert result.blocks["forward"].solution.optimal
    assert result.step.height_bytes >= result.solution.height_bytes


def test_lives_and_sizes_of_the_flat_problem_are_those_of_the_levels() -> None:
    uses, kept = step(2)
    blocks = {"forward": FORWARD, "backward": BACKWARD}
    flat = {b.id: b for b in solve_two_level(blocks, uses, kept).problem.buffers}
    assert flat["x1"] == kept[1]
    assert flat["b1/b2"] == Buffer("b1/b2", 30 + 4, 30 + 6, 3000, 512)
    assert set(flat) == {
        "x0", "x1",
        *(f"f{layer}/b{i}" for layer in range(2) for i in range(4)),
        *(f"b{layer}/b{i}" for layer in range(2) for i in range(3)),
    }  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.lists(problems(most=4), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), max_size=4),
    problems(most=3),
)
def test_any_step_is_valid_as_one_flat_problem(
    inner: list[Problem], starts: list[tuple[int, int]], outer: Problem
) -> None:
    """Blocks may overlap each other; level two alone, before the flat problem, is valid as well."""
    blocks = {f"block{i}": _from_zero(problem) for i, problem in enumerate(inner)}
    uses = [
        Use(f"use{i}", f"block{block % len(inner)}", start)
        for i, (block, start) in enumerate(starts)
    ]
    for time_limit_s in (1e-9, 30):
        result = solve_two_level(
            blocks, uses, outer.buffers, alignment_bytes=2, time_limit_s=time_limit_s
        )
        assert violations(result.problem, result.solution.layout) == []
        assert result.solution.height_bytes <= result.step.height_bytes


def _from_zero(problem: Problem) -> Problem:
    moved = (
        Buffer(b.id, b.lower + 2, b.upper + 2, b.size_bytes, b.alignment_bytes)
        for b in problem.buffers
    )
    return Problem(tuple(moved), problem.alignment_bytes)


def test_what_can_not_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="use u: no block 'layer': there is forward"):
        solve_two_level({"forward": FORWARD}, [Use("u", "layer", 0)])
    with pytest.raises(ValueError, match="block early: begins at -1"):
        solve_two_level({"early": problem_of((-1, 2, 3))}, [])
    with pytest.raises(ValueError, match="two buffers have the id 'u/b0'"):
        solve_two_level({"forward": FORWARD}, [Use("u", "forward", 0)] * 2)
    with pytest.raises(ValueError, match="time_limit_s is 0"):
        solve_two_level({"forward": FORWARD}, [], time_limit_s=0)
