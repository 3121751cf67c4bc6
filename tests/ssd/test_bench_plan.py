"""The bench's plan and the choice of what is best: arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssd.bench import BenchPlan, Op, Result, best_of
from ssd.contracts import EngineKind
from tests.ssd.disk import MIB

PLACE = Path("/place")


def _results(
    engine: str, write: float, read: float, cpu: float, *, block: int = 4 * MIB, depth: int = 16
) -> list[Result]:
    speeds = {Op.WRITE: write, Op.READ: read, Op.MIXED: write + read}
    common: dict[str, Any] = {"directory": PLACE, "engine": engine, "block_bytes": block}
    common |= {"depth": depth, "cpu_s_per_gb": cpu, "rounds": 3, "spread": 0.0}
    return [Result(op=op, bytes_per_s=speed, **common) for op, speed in speeds.items()]


def test_settings_hold_at_most_a_quarter_of_the_file() -> None:
    plan = BenchPlan(size_bytes=16 * MIB, block_bytes=(2 * MIB, MIB), depths=(4, 2, 8, 2))
    assert plan.settings() == [(MIB, 2), (MIB, 4), (2 * MIB, 2)]
    assert plan.in_flight_bytes == 4 * MIB


def test_what_is_written_is_known_before() -> None:
    plan = BenchPlan(size_bytes=16 * MIB, block_bytes=(MIB,), depths=(2, 4), rounds=3)
    # Once in all; then for each of 2 settings, 3 rounds and 2 engines all and half of the file.
    assert plan.written_bytes(2) == 16 * MIB * (1 + 2 * 3 * 2) + 8 * MIB * (2 * 3 * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_bytes": ()}, r"block_bytes is \(\)"),
        ({"block_bytes": (MIB, 0)}, "block_bytes is .*: it takes numbers of 1 or more"),
        ({"depths": (-1,)}, r"depths is \(-1,\)"),
        ({"rounds": 0}, "rounds is 0: it takes 1 or more"),
        ({"engines": ()}, "engines is .*: it takes one or both of io_uring, threads"),
        ({"engines": (EngineKind.AUTO,)}, "engines is .*: it takes one or both"),
        ({"size_bytes": 16 * MIB - 1, "depths": (4, 8)}, "it takes 16777216 or more"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchPlan(**arguments)


def test_the_slower_of_writing_and_reading_decides() -> None:
    fast_writes = _results("io_uring", write=9e9, read=1e9, cpu=0.001)
    even = _results("threads", write=2e9, read=1.5e9, cpu=0.1, depth=4)
    best = best_of(fast_writes + even)
    assert best is not None
    assert (best.engine, best.block_bytes, best.depth) == (EngineKind.THREADS, 4 * MIB, 4)
    speeds = (best.write_bytes_per_s, best.read_bytes_per_s, best.mixed_bytes_per_s)
    assert speeds == (2e9, 1.5e9, 3.5e9)


@pytest.mark.parametrize(("slower", "chosen"), [(0.98, "threads"), (0.96, "io_uring")])
def test_within_three_percent_less_cpu_wins(slower: float, chosen: str) -> None:
    costly = _results("io_uring", write=3e9, read=2e9, cpu=0.02)
    cheap = _results("threads", write=3e9, read=2e9 * slower, cpu=0.01)
    best = best_of(costly + cheap)
    assert best is not None
    assert best.engine == chosen


def test_fio_and_what_was_not_measured_in_all_ways_are_never_best() -> None:
    fio = _results("fio", write=9e9, read=9e9, cpu=0.0)
    thp = _results("fio-thp", write=9e9, read=9e9, cpu=0.0)
    partly = [r for r in _results("io_uring", 8e9, 8e9, 0.0) if r.op is not Op.READ]
    assert best_of(fio + thp + partly) is None
    best = best_of(fio + thp + partly + _results("threads", 1e9, 1e9, 0.1))
    assert best is not None
    assert best.engine is EngineKind.THREADS


def test_cpu_is_of_writing_and_reading() -> None:
    results = [
        replace(result, cpu_s_per_gb={Op.WRITE: 0.01, Op.READ: 0.03, Op.MIXED: 9.0}[result.op])
        for result in _results("threads", 1e9, 1e9, 0.0)
    ]
    best = best_of(results)
    assert best is not None
    assert best.cpu_s_per_gb == pytest.approx(0.02)
