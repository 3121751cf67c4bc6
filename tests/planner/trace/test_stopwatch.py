"""Seconds of phases, on a clock that is told when to go on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from planner.trace import Pass, Segment
from planner.trace.stopwatch import Clock, Stopwatch


@dataclass
class _Now:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def _stopwatch() -> tuple[Stopwatch, _Now]:
    now = _Now()
    return Stopwatch(Clock(moment=now)), now


def test_every_second_is_of_the_phase_that_runs() -> None:
    stopwatch, clock = _stopwatch()
    clock.now_s += 1000  # before it runs
    with stopwatch.running():
        stopwatch.part = "layer"
        stopwatch.segment = Segment.PRE
        clock.now_s += 1
        with stopwatch.within(Segment.CORE, Pass.BACKWARD):
            clock.now_s += 2
            with stopwatch.within(Segment.POST, Pass.RECOMPUTE):
                clock.now_s += 4
            clock.now_s += 8
        clock.now_s += 16
        stopwatch.part = "head"
        stopwatch.direction = Pass.BACKWARD
        clock.now_s += 32
    clock.now_s += 1000  # after
    stopwatch.segment = Segment.HEAD
    seconds = {phase: s for phase, s in stopwatch.seconds.items() if s}
    assert seconds == {
        ("layer", Segment.PRE, Pass.FORWARD): 1 + 16,
        ("layer", Segment.CORE, Pass.BACKWARD): 2 + 8,
        ("layer", Segment.POST, Pass.RECOMPUTE): 4,
        ("head", Segment.PRE, Pass.BACKWARD): 32,
    }


@pytest.mark.parametrize("times", [0, 1, 5])
def test_one_tile_counts_for_those_that_it_stands_for(times: int) -> None:
    stopwatch, clock = _stopwatch()
    with stopwatch.running():
        stopwatch.part, stopwatch.segment = "layer", Segment.POST
        clock.now_s += 1000
        for tile in stopwatch.repeating([1, 10, 100], times, index=1):
            clock.now_s += tile
        clock.now_s += 2000
    phase = "layer", Segment.POST, Pass.FORWARD
    assert stopwatch.seconds[phase] == 1000 + 1 + 10 * (1 + times) + 100 + 2000


def test_moments_are_told_when_the_device_has_come_to_them() -> None:
    submitted: list[float | None] = []
    done_s = iter([1.0, 3.0, 7.0])

    def moment() -> int:
        submitted.append(None)
        return len(submitted) - 1

    def settle() -> None:
        for index, known in enumerate(submitted):
            submitted[index] = next(done_s) if known is None else known

    def between(start: int, end: int) -> float:
        first_s, last_s = submitted[start], submitted[end]
        assert first_s is not None
        assert last_s is not None
        return last_s - first_s

    stopwatch = Stopwatch(Clock(moment=moment, between=between, settle=settle))
    with stopwatch.running():
        stopwatch.part = "layer"
        assert submitted == [None, None]  # nothing waits for the device
    assert stopwatch.seconds == {
        ("", Segment.EMBEDDING, Pass.FORWARD): 2,
        ("layer", Segment.EMBEDDING, Pass.FORWARD): 4,
    }
