"""The double's lanes: when they run, what they hold, whose waiting counts, and their faults.

Scope: short scripts of stream calls; eagerness 0 runs nothing early, 1 everything.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from offload import TransferError
from offload.host_pool import ALIGNMENT_BYTES
from offload.parcels import bytes_of
from tests.races.compute import Compute
from tests.races.double import DoubleStreams
from tests.races.pool import PoisoningPool
from tests.races.queues import DoubleEvent, DoubleStream
from tests.races.scripts import SIZE_BYTES, floats_of, is_nan, values


def _move(lane: DoubleStream, target: Tensor, source: Tensor) -> DoubleEvent:
    """A copy after all that compute did so far."""
    lane.wait(lane.streams.current().record())
    lane.copy(target, source)
    return lane.record()


def _holds(memory: Tensor, start: int) -> bool:
    return torch.equal(floats_of(memory), values(start))


# ---- when lanes run ----


def test_nothing_runs_before_it_is_forced_and_then_no_more_than_that() -> None:
    double = DoubleStreams(0, eagerness=0)
    first, second, third = (double.host_memory(SIZE_BYTES) for _ in range(3))
    sources = [bytes_of(values(start)) for start in (1, 2, 3)]
    written = _move(double.d2h, first, sources[0])
    _move(double.d2h, second, sources[1])
    _move(double.h2d, third, sources[2])
    assert is_nan(first)
    double.current().wait(written)
    assert _holds(first, 1)
    assert is_nan(second)
    assert is_nan(third)
    assert double.ran == ["d2h"]


def test_forcing_a_lane_forces_what_it_waits_for() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), bytes_of(values(1))
    landing = double.landing(SIZE_BYTES)
    double.h2d.wait(_move(double.d2h, host, source))
    landed = _move(double.h2d, landing, host)
    double.current().wait(landed)
    assert _holds(landing, 1)
    assert double.ran == ["d2h", "h2d"]


def test_an_eager_adversary_runs_whatever_can_run() -> None:
    double = DoubleStreams(0, eagerness=1)
    host, source = double.host_memory(SIZE_BYTES), bytes_of(values(1))
    assert _move(double.d2h, host, source).is_done()
    assert _holds(host, 1)


def _interleaved(seed: int) -> tuple[str, ...]:
    double = DoubleStreams(seed)
    pairs = [(double.host_memory(SIZE_BYTES), bytes_of(values(start))) for start in range(8)]
    for index, (host, source) in enumerate(pairs):
        _move((double.d2h, double.h2d)[index % 2], host, source)
    double.synchronize()
    assert double.violations == []
    return tuple(double.ran)


def test_lanes_interleave_by_the_seed_alone() -> None:
    orders = [_interleaved(seed) for seed in range(200)]
    assert orders == [_interleaved(seed) for seed in range(200)]
    assert len(set(orders)) > 20


def test_asking_tells_the_truth_and_forces_nothing() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), bytes_of(values(1))
    begun = double.current().record()
    written = _move(double.d2h, host, source)
    asked = [event.is_done() for event in (begun, written, begun, written)]
    assert asked == [False] * 4  # compute too may lag behind the host
    double.current().wait(written)
    assert begun.is_done()
    assert written.is_done()
    assert double.polls == 6


def test_time_is_known_of_what_is_done_and_goes_on_along_a_lane() -> None:
    double = DoubleStreams(0, eagerness=0)
    start, stop = double.d2h.record(), double.d2h.record()
    double.current().wait(start)
    with pytest.raises(AssertionError, match="not done"):
        stop.seconds_since(start)
    double.current().wait(stop)
    assert stop.seconds_since(start) > 0


# ---- what holds memory ----


def test_a_queued_copy_holds_neither_end() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    _move(double.d2h, host, bytes_of(source))
    ends = [StorageWeakRef(tensor.untyped_storage()) for tensor in (host, source)]
    del host, source
    assert all(end.expired() for end in ends)


@pytest.mark.parametrize("eagerness", [0.0, 1.0])
def test_a_source_freed_before_compute_waited_is_found(eagerness: float) -> None:
    double = DoubleStreams(0, eagerness=eagerness)
    host = double.host_memory(SIZE_BYTES)
    written = _move(double.d2h, host, bytes_of(values(1)))
    double.current().wait(written)
    assert double.violations == ["memory was freed while d2h reads [0, 24)"]
    assert is_nan(host)


@pytest.mark.parametrize("eagerness", [0.0, 1.0])
def test_a_target_freed_before_compute_waited_is_found(eagerness: float) -> None:
    double = DoubleStreams(0, eagerness=eagerness)
    host = double.host_memory(SIZE_BYTES)
    landed = _move(double.h2d, double.landing(SIZE_BYTES), host)
    double.current().wait(landed)
    assert double.violations == ["memory was freed while h2d writes [0, 24)"]


def test_what_compute_has_waited_for_may_be_freed() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    double.current().wait(_move(double.d2h, host, bytes_of(source)))
    del source
    double.synchronize()
    assert double.violations == []
    assert _holds(host, 1)


@pytest.mark.parametrize("knows", [False, True])
def test_host_memory_is_freed_once_the_host_has_seen_its_users_done(knows: bool) -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    written = _move(double.d2h, host, bytes_of(source))
    double.current().wait(written)  # compute's waiting is not the host's
    assert not knows or written.is_done()
    del host
    double.current().record()
    expected = [] if knows else ["memory was freed while d2h writes [0, 24)"]
    assert double.violations == expected


def test_a_lane_may_not_count_on_what_the_host_saw_of_compute() -> None:
    double = DoubleStreams(0, eagerness=1)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    assert double.current().record().is_done()
    double.d2h.copy(host, bytes_of(source))
    assert len(double.violations) == 1


# ---- whose waiting counts ----


@pytest.mark.parametrize("waits", ["compute", "side"])
@pytest.mark.parametrize("eagerness", [0.0, 1.0])
def test_only_the_stream_that_computes_makes_compute_wait(waits: str, eagerness: float) -> None:
    double = DoubleStreams(0, eagerness=eagerness)
    host, landing = double.host_memory(SIZE_BYTES), double.landing(SIZE_BYTES)
    double.compute.wait(_move(double.d2h, host, bytes_of(source := values(1))))
    landed = _move(double.h2d, landing, host)
    with double.user_stream() as side, Compute(double):
        assert double.current() is side
        {"compute": double.compute, "side": side}[waits].wait(landed)
        doubled = floats_of(landing) * 2
    assert torch.equal(doubled, source * 2) == (waits == "side")
    assert bool(double.violations) == (waits == "compute")


def test_streams_that_are_not_joined_are_found() -> None:
    double = DoubleStreams(0)
    with Compute(double):
        x = values(1)
        with double.user_stream():
            x = x * 2
        with double.user_stream(is_joined=False):
            x = x * 2
        assert double.violations == []
        _ = x * 2
    assert double.violations == [
        "compute reads [0, 24), which no event orders after: side writes [0, 24)"
    ]


@pytest.mark.parametrize("is_shared", [False, True])
def test_another_streams_memory_is_shared_before_it_is_freed(is_shared: bool) -> None:
    double = DoubleStreams(0)
    host, landing = double.host_memory(SIZE_BYTES), double.landing(SIZE_BYTES)
    landed = _move(double.h2d, landing, host)
    with double.user_stream() as side, Compute(double):
        side.wait(landed)
        if is_shared:
            double.share(landing)
        _ = floats_of(landing) * 2
        del landing
    assert bool(double.violations) != is_shared


def test_a_stream_that_does_not_run_protects_its_memory_once_told_to_wait() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    end = StorageWeakRef(source.untyped_storage())
    written = _move(double.d2h, host, bytes_of(source))
    with double.user_stream():
        double.compute.wait(written)
        del source
        assert is_nan(host)
    assert _holds(host, 1)
    assert end.expired()
    assert double.violations == []


def test_and_it_protects_no_other_streams_memory() -> None:
    double = DoubleStreams(0, eagerness=0)
    host = double.host_memory(SIZE_BYTES)
    with double.user_stream() as side:
        source = values(1)
        double.compute.wait(_move(double.d2h, host, bytes_of(source)))
        del source
        side.record()
    assert double.violations == ["memory was freed while d2h reads [0, 24)"]
    assert is_nan(host)


def test_a_stream_that_begins_to_run_has_waited_for_what_it_was_told_to() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    double.side.wait(_move(double.d2h, host, bytes_of(source)))
    assert is_nan(host)
    with double.user_stream(is_joined=False):
        assert _holds(host, 1)


def test_current_within_a_lane_is_the_lane_and_its_waiting_is_nobody_elses() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, landing = double.host_memory(SIZE_BYTES), double.landing(SIZE_BYTES)
    landed = _move(double.h2d, landing, host)
    with double.h2d.active():
        assert double.current() is double.h2d
        double.current().wait(landed)
    assert double.ran == []
    with Compute(double):
        _ = floats_of(landing) * 2
    assert double.violations == [
        "compute reads [0, 24), which no event orders after: h2d writes [0, 24)"
    ]


def test_an_operation_within_a_lane_is_the_lanes_work() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, landing = double.host_memory(SIZE_BYTES), double.landing(SIZE_BYTES)
    double.current().wait(_move(double.d2h, host, bytes_of(source := values(1))))
    _move(double.h2d, landing, host)
    with double.h2d.active(), Compute(double):
        floats_of(landing).mul_(2)
    double.current().wait(double.h2d.record())
    assert torch.equal(floats_of(landing), source * 2)
    assert double.violations == []


# ---- faults, counts, the pool ----


def test_the_nth_copy_fails_and_whoever_waits_for_it_is_told() -> None:
    double = DoubleStreams(0, eagerness=0)
    hosts = [double.host_memory(SIZE_BYTES).zero_() for _ in range(3)]
    source, fault = bytes_of(values(1)), OSError("planted")
    double.fail_copy(2, fault)
    events = [_move(double.d2h, host, source) for host in hosts]
    double.current().wait(events[0])
    with pytest.raises(TransferError, match="planted") as caught:
        double.current().wait(events[1])
    assert caught.value.__cause__ is fault
    double.current().wait(events[2])
    assert [is_nan(host) for host in hosts] == [False, True, False]


def test_a_failure_goes_on_to_lanes_that_wait_for_it() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    double.fail_copy(1, OSError("planted"))
    double.h2d.wait(_move(double.d2h, host, bytes_of(source)))
    with pytest.raises(TransferError, match="planted"):
        double.current().wait(double.h2d.record())
    with pytest.raises(ValueError, match="number=0"):
        double.fail_copy(0, OSError())


def test_stops_of_the_host_are_counted() -> None:
    double = DoubleStreams(0)
    with Compute(double):
        x = values(1) * 2
        x.add_(1)
        assert (double.host_syncs, double.operation_syncs) == (0, 0)
        assert x.sum().item() == 48
        x.nonzero()
        double.synchronize()
    assert (double.host_syncs, double.operation_syncs) == (1, 2)


def test_a_stop_of_the_host_orders_everything() -> None:
    double = DoubleStreams(0, eagerness=0)
    host, source = double.host_memory(SIZE_BYTES), values(1)
    double.synchronize()
    double.d2h.copy(host, bytes_of(source))
    double.synchronize()
    assert _holds(host, 1)
    double.h2d.copy(bytes_of(source), host)
    double.synchronize()
    del host, source
    double.synchronize()
    assert double.violations == []


def test_bytes_of_the_pool_are_nan_once_they_are_given_back() -> None:
    double = DoubleStreams(0)
    pool = PoisoningPool(double)
    extents = [extent for _ in range(2) if (extent := pool.take(SIZE_BYTES)) is not None]
    for extent in extents:
        extent.memory.zero_()
    pool.give_back(extents[0], [])
    assert is_nan(extents[0].memory)
    assert not floats_of(extents[1].memory).any()
    assert pool.free_bytes == pool.size_bytes - ALIGNMENT_BYTES
