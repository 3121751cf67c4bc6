"""Placing and undoing: what is undone leaves no trace, whatever was inferred in between."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Problem
from planner.layout.sections import cut_sections
from planner.layout.state import PLACED, Placement, State
from planner.layout.topology import build_topology
from tests.planner.layout.reference import problems


def snapshot(state: State) -> tuple[list[int], ...]:
    arrays = state.lowest.tolist(), state.floors.tolist(), state.slacks.tolist()
    return (*arrays, state.crossings.copy())


@settings(deadline=None)
@given(problems(most=9), st.integers(0, 12), st.data())
def test_what_is_undone_leaves_no_trace(problem: Problem, spare: int, data: st.DataObject) -> None:
    """With little to spare placements are refused, and those must change nothing either."""
    sections = cut_sections(problem)
    state = State(build_topology(sections), sections.bound + spare)
    placed: list[tuple[Placement, tuple[list[int], ...]]] = []
    for _ in range(12):
        left = [i for i in range(sections.buffers) if state.lowest[i] < PLACED]
        before = snapshot(state)
        goes_on = data.draw(st.booleans() | st.just(True))
        if left and goes_on:
            # In the search's order: the lowest first.
            index = min(left, key=lambda i: int(state.lowest[i]))
            placement = state.place(index, 0, len(sections.totals))
            if placement is None:
                assert snapshot(state) == before
            else:
                placed.append((placement, before))
        elif placed:
            placement, before = placed.pop()
            state.undo(placement)
            assert snapshot(state) == before


@settings(deadline=None)
@given(problems(most=7))
def test_with_room_enough_nothing_is_refused_and_all_crossings_end(problem: Problem) -> None:
    sections = cut_sections(problem)
    most = int((sections.sizes + sections.alignments).sum())
    state = State(build_topology(sections), most)
    while (state.lowest < PLACED).any():
        index = int(state.lowest.argmin())
        assert state.place(index, 0, len(sections.totals)) is not None
    assert state.totals().tolist() == [0] * len(sections.totals)
    assert not any(state.crossings)
