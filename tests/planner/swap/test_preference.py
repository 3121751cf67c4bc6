"""Which step is taken where some are hardly longer than the shortest."""

from __future__ import annotations

import pytest

from planner.swap.preference import Effort, may_be_preferred, preferred


def _preferred(*efforts: tuple[float, float], tolerance: float = 0.01) -> int:
    numbered = [Effort(seconds, written, seconds) for seconds, written in efforts]
    return numbered.index(preferred(numbered, lambda effort: effort, tolerance))


@pytest.mark.parametrize(
    ("efforts", "index"),
    [
        (((100.0, 5.0), (100.9, 0.0)), 1),  # hardly longer, and writes nothing
        (((100.0, 5.0), (101.1, 0.0)), 0),  # too long
        (((100.9, 3.0), (100.0, 3.0)), 1),  # as much is written: the fastest
        (((100.5, 2.0), (100.9, 1.0), (100.0, 9.0)), 1),  # the least, not the fastest of two
        (((7.0, 1.0),), 0),
    ],
)
def test_least_is_written_within_the_tolerance(
    efforts: tuple[tuple[float, float], ...], index: int
) -> None:
    assert _preferred(*efforts) == index


def test_without_a_tolerance_the_fastest_is_taken_and_the_first_of_equals() -> None:
    assert _preferred((100.0, 5.0), (100.1, 0.0), tolerance=0) == 0
    assert _preferred((100.0, 5.0), (100.0, 5.0), tolerance=0) == 0


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates is empty"):
        preferred([], lambda effort: effort, 0.01)


def test_what_cannot_be_preferred_needs_no_look() -> None:
    dry, wet = Effort(100.8, 0.0, 100.0), Effort(100.8, 1.0, 100.0)
    assert not may_be_preferred(99.5, dry, 0.01)  # not faster by a hundredth at their fastest
    assert may_be_preferred(98.9, dry, 0.01)
    assert may_be_preferred(101.0, wet, 0.01)  # may write less
    assert not may_be_preferred(102.0, wet, 0.01)
