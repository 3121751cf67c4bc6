"""Two levels: absolute offsets, valid as one flat problem, and at the bound where a step nests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Buffer, Problem, Use, solve_two_level, two_level, violations
from tests.planner.layout.reference import (
    largest_live_sum,
    lowest_height,
    problem_of,
    problems,
)

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


def only(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Leave one of the rounds, and no flat problem."""
    rounds = [
        each._replace(share=1.0, core_share=1.0) for each in two_level.ROUNDS if each.name == name
    ]
    monkeypatch.setattr(two_level, "ROUNDS", rounds)
    monkeypatch.setattr(two_level, "MOST_FLAT_BUFFERS", 0)


def test_every_layer_of_a_step_is_in_its_block() -> None:
    uses, kept = step(6)
    blocks = {"forward": FORWARD, "backward": BACKWARD}
    result = solve_two_level(blocks, uses, kept, time_limit_s=30)
    assert len(result.problem.buffers) == 6 * (4 + 3) + 6
    assert violations(result.problem, result.solution.layout) == []
    assert result.solution.optimal
    assert result.solution.height_bytes == largest_live_sum(result.problem)
    assert result.solution.solver.startswith("blocks: ")


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


def test_a_block_begins_where_all_of_its_buffers_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upon what is larger it would begin at 10, as high, where its buffer may not."""
    only(monkeypatch, "blocks")
    block = Problem((Buffer("a", 0, 2, 8, 8),), 1)
    large = Buffer("large", 0, 9, 10)
    result = solve_two_level({"block": block}, [Use("u", "block", 0)], [large], alignment_bytes=2)
    assert result.solution.layout.offsets_bytes == {"u/a": 0, "large": 8}


# The block is 4 high from 0 to 2 and 1 high from 2 to 8. Around it lives something of 4, from 4 on.
HIGH_THEN_LOW = problem_of((0, 2, 3), (0, 8, 1))
LATE = Buffer("late", 4, 20, 4)


def test_a_use_that_is_too_high_as_a_block_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "blocks")
    uses = [Use("u", "block", 0)]
    blocks = {"block": HIGH_THEN_LOW}
    opened = solve_two_level(blocks, uses, [LATE], alignment_bytes=1)
    assert opened.solution.height_bytes == largest_live_sum(opened.problem) == 5
    monkeypatch.setattr(two_level, "_too_high", lambda *_: set())
    closed = solve_two_level(blocks, uses, [LATE], alignment_bytes=1)
    assert closed.solution.height_bytes == 8


def test_a_use_that_fits_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three uses only the first has something large beside it that begins later."""
    only(monkeypatch, "blocks")
    told: list[set[str]] = []
    asked = two_level._too_high

    def listening(*arguments: object) -> set[str]:
        told.append(asked(*arguments))  # type: ignore[arg-type]
        return told[-1]

    monkeypatch.setattr(two_level, "_too_high", listening)
    uses = [Use("u", "block", 0), Use("v", "block", 30), Use("w", "block", 40)]
    solve_two_level({"block": HIGH_THEN_LOW}, uses, [LATE], alignment_bytes=1)
    assert told == [{"u"}]


@pytest.mark.parametrize("name", [each.name for each in two_level.ROUNDS if each.part])
def test_cut_blocks_are_as_low_as_the_flat_problem(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    only(monkeypatch, name)
    monkeypatch.setattr(two_level, "_too_high", lambda *_: set())
    uses = [Use("u", "block", 0)]
    cut = solve_two_level({"block": HIGH_THEN_LOW}, uses, [LATE], alignment_bytes=1)
    assert cut.solution.height_bytes == 5
    assert violations(cut.problem, cut.solution.layout) == []
    assert cut.solution.solver.startswith(name)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(problems(most=4), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), max_size=4),
    problems(most=3),
)
def test_any_step_is_valid_as_one_flat_problem(
    inner: list[Problem], starts: list[tuple[int, int]], outer: Problem
) -> None:
    """Blocks may overlap each other; with hardly any time there is a layout as well."""
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
        assert result.solution.height_bytes >= result.solution.lower_bound_bytes
    assert result.solution.lower_bound_bytes >= largest_live_sum(result.problem)
    if len(result.problem.buffers) <= 6:
        assert result.solution.height_bytes == lowest_height(result.problem)


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
