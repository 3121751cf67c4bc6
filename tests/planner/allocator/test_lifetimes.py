"""Lifetimes as events: in order of time, frees first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.allocator import Free, Lifetime, Malloc, events_of, replay


def test_frees_come_before_allocations_of_the_same_time() -> None:
    lives = [Lifetime(1, 10, 0, 2), Lifetime(2, 20, 2, 3, stream=1), Lifetime(3, 30, 0)]
    assert events_of(lives) == [Malloc(1, 10), Malloc(3, 30), Free(1), Malloc(2, 20, 1), Free(2)]


@pytest.mark.parametrize("freed", [4, 5])
def test_what_is_freed_was_born_before(freed: int) -> None:
    with pytest.raises(ValueError, match=f"freed is {freed}: takes more than born"):
        Lifetime(0, 1, 5, freed)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(0, 5000)), max_size=20)
)
def test_the_peak_is_the_largest_live_sum(lives: list[tuple[int, int, int]]) -> None:
    made = [Lifetime(i, size, born, born + age) for i, (born, age, size) in enumerate(lives)]
    peak = max(sum(m.size_bytes for m in made if m.born <= t < (m.freed or 0)) for t in range(30))
    usage = replay(events_of(made)).usage
    assert usage.requested_bytes.peak == peak
    assert usage.requested_bytes.now == 0
