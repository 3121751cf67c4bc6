"""What the double finds: accesses that no event orders, on every seed.

Scope: short programs of stream calls. When lanes run, and what holds memory, is in
`test_double_lanes.py`; the engine's own schedules are elsewhere.
"""

from __future__ import annotations

import pytest
import torch

from offload.parcels import bytes_of
from offload.streams import Streams
from tests.races.compute import Compute
from tests.races.double import DoubleStreams
from tests.races.scripts import RULES, SIZE_BYTES, Program, is_nan, values

SEEDS = range(200)


def test_it_is_what_the_engine_takes() -> None:
    streams: Streams = DoubleStreams(0)
    assert streams.d2h != streams.h2d
    assert streams.current() == streams.current()


def test_a_careful_program_is_right_on_every_seed() -> None:
    for seed in SEEDS:
        double = DoubleStreams(seed)
        with Compute(double):
            assert torch.equal(Program(double).run(), Program.expected()), seed
        assert double.violations == [], seed
        assert double.ran == ["d2h", "h2d"] * 2  # the only order that its events allow


@pytest.mark.parametrize("rule", RULES)
def test_each_broken_rule_is_found_and_gives_nan_on_every_seed(rule: str) -> None:
    found = nan = 0
    for seed in SEEDS:
        double = DoubleStreams(seed)
        with Compute(double):
            result = Program(double, rule).run()
        found += bool(double.violations)
        nan += bool(result.isnan().any())
    assert (found, nan) == (200, 200)


def test_unwatched_compute_that_does_not_wait_reads_nan_on_late_seeds() -> None:
    doubles = [DoubleStreams(seed) for seed in SEEDS]
    results = [Program(double, "the copy to the landing buffer").run() for double in doubles]
    nan = {double: bool(t.isnan().any()) for double, t in zip(doubles, results, strict=True)}
    assert all(is_nan for double, is_nan in nan.items() if double.eagerness == 0)
    assert not any(is_nan for double, is_nan in nan.items() if double.eagerness == 1)
    assert 100 <= sum(nan.values()) < 200


def test_seeds_are_late_eager_and_between() -> None:
    drawn = [DoubleStreams(seed).eagerness for seed in SEEDS]
    assert min(drawn.count(0.0), drawn.count(1.0)) > 20
    assert sum(0 < eagerness < 1 for eagerness in drawn) > 60


def test_parts_of_one_slab_are_apart() -> None:
    double = DoubleStreams(0)
    slab, size = double.host_memory(3 * SIZE_BYTES).zero_(), SIZE_BYTES
    source, landing = values(1), double.landing(SIZE_BYTES)
    for lane in (double.d2h, double.h2d):
        lane.wait(double.current().record())
    double.h2d.copy(landing, slab[:size])
    double.d2h.copy(slab[size : 2 * size], bytes_of(source))
    assert double.violations == []
    double.h2d.copy(landing, slab[size - 1 : 2 * size - 1])
    assert double.violations == [
        "h2d reads [23, 47), which no event orders after: d2h writes [24, 48)"
    ]
    assert [is_nan(part) for part in slab.split(size)] == [False, True, False]


def test_an_event_covers_what_compute_did_before_it_alone() -> None:
    double = DoubleStreams(0)
    host = double.host_memory(SIZE_BYTES)
    with Compute(double):
        source = values(1)
        double.d2h.wait(double.current().record())
        torch.empty_like(source.view(2, 3).narrow(0, 0, 1)).detach_()  # views, and no work
        double.d2h.copy(host, bytes_of(source))
        assert double.violations == []
        source[:2] = 7
        double.d2h.copy(host, bytes_of(source))
    assert double.violations == [
        "compute writes [0, 8), which no event orders after: d2h reads [0, 24)",
        "d2h reads [0, 24), which no event orders after: compute writes [0, 8)",
    ]


def test_memory_that_was_never_seen_is_taken_for_work_of_now() -> None:
    double = DoubleStreams(0)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    double.d2h.wait(double.current().record())
    double.compute_works()
    double.d2h.copy(host, bytes_of(source))
    assert double.violations == [
        "d2h reads [0, 24), which no event orders after: compute writes [0, 24)"
    ]


@pytest.mark.parametrize("eagerness", [0.0, 1.0])
def test_a_source_changed_in_flight_spoils_its_copy(eagerness: float) -> None:
    double = DoubleStreams(0, eagerness=eagerness)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    with Compute(double):
        double.d2h.wait(double.current().record())
        double.d2h.copy(host, bytes_of(source))
        written = double.d2h.record()
        source.add_(1)
        double.current().wait(written)
    assert is_nan(host)
    assert double.violations == [
        "compute writes [0, 24), which no event orders after: d2h reads [0, 24)"
    ]


def test_a_copy_that_raced_leaves_nan_over_what_was_copied_before_it() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, first, second = double.host_memory(SIZE_BYTES), values(1), values(2)
    double.d2h.wait(double.current().record())
    double.d2h.copy(host, bytes_of(first))
    double.compute_works(writes=[second])
    double.d2h.copy(host, bytes_of(second))
    double.current().wait(double.d2h.record())
    assert is_nan(host)
