"""The double of a disk: what is right passes on every seed, and each broken rule is found.

Scope: short scripts of its calls; eagerness 0 runs nothing early, 1 everything. The engine over it
is in `test_schedules.py` and `test_spills.py`.
"""

from __future__ import annotations

import errno
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offload import SpillError, TransferError
from offload.disk import Disk, DiskCopy
from offload.parcels import bytes_of
from tests.races.disk import DoubleDisk
from tests.races.double import DoubleStreams
from tests.races.pool import PoisoningPool
from tests.races.queues import DoubleEvent
from tests.races.scripts import floats_of, is_nan

UNIT = DoubleDisk.alignment_bytes
SEEDS = range(60)


class Desk:
    """A double with a disk and three units of host memory, and what is done with them."""

    def __init__(
        self, *, seed: int = 0, eagerness: float | None = 0.0, limit_bytes: int | None = None
    ) -> None:
        self.double = DoubleStreams(seed, eagerness=eagerness)
        self.disk = DoubleDisk(self.double, seed, limit_bytes=limit_bytes)
        self.host = list(self.double.host_memory(3 * UNIT).split(UNIT))
        self.sources: list[Tensor] = []

    @property
    def violations(self) -> list[str]:
        return self.double.violations

    def save(self, memory: Tensor, value: float) -> DoubleEvent:
        """A copy from the device."""
        self.sources.append(torch.full((UNIT // 4,), float(value)))
        self.double.d2h.wait(self.double.current().record())
        self.double.d2h.copy(memory, bytes_of(self.sources[-1]))
        return self.double.d2h.record()

    def write(self, memory: Tensor, value: float) -> DiskCopy:
        return self.disk.write(memory, [self.save(memory, value)])

    def written(self, memory: Tensor, value: float) -> DiskCopy:
        """The host knows that it is over."""
        copy = self.write(memory, value)
        copy.write.settle()
        return copy

    def load(self, memory: Tensor) -> tuple[Tensor, DoubleEvent]:
        """A copy to the device."""
        landing = self.double.landing(UNIT)
        self.double.h2d.wait(self.double.current().record())
        self.double.h2d.copy(landing, memory)
        return landing, self.double.h2d.record()


def _holds(memory: Tensor, value: float) -> bool:
    return bool((floats_of(memory) == value).all())


def test_it_is_what_the_engine_takes() -> None:
    disk: Disk = Desk().disk
    assert disk.alignment_bytes == UNIT


def test_a_careful_program_is_right_on_every_seed() -> None:
    for seed in SEEDS:
        desk = Desk(seed=seed, eagerness=None)
        copies = [desk.write(memory, n) for n, memory in enumerate(desk.host)]
        for copy in copies:
            copy.write.settle()
        desk.save(desk.host[1], 9)  # its bytes are on the disk
        reads = [desk.disk.read(copies[n], desk.host[2 - n], []) for n in (0, 2)]
        for read in reads:
            read.settle()
        landings = [desk.load(desk.host[2 - n]) for n in (0, 2)]
        for n, (landing, landed) in zip((0, 2), landings, strict=True):
            desk.double.current().wait(landed)
            assert _holds(landing, n), seed
        for copy in copies:
            desk.disk.free(copy)
        desk.double.current().wait(desk.double.d2h.record())
        assert (desk.violations, desk.disk.lent_bytes) == ([], 0), seed


# ---- rules that are broken, on late and on eager seeds ----

each = pytest.mark.parametrize("eagerness", [0.0, 1.0])


@each
def test_a_write_that_does_not_wait_for_the_copy_to_the_host(eagerness: float) -> None:
    desk = Desk(eagerness=eagerness)
    desk.save(desk.host[0], 1)
    copy = desk.disk.write(desk.host[0], [])
    copy.write.settle()
    read = desk.disk.read(copy, desk.host[1], [])
    read.settle()
    assert is_nan(desk.host[1])
    assert desk.violations == [
        "ssd write 1 reads [0, 1024), which no event orders after: d2h writes [0, 1024)"
    ]


@each
@pytest.mark.parametrize("is_known", [False, True])
def test_host_memory_that_is_changed_while_it_is_written(eagerness: float, is_known: bool) -> None:
    desk = Desk(eagerness=eagerness)
    copy = desk.write(desk.host[0], 1)
    if is_known:
        copy.write.settle()
    desk.save(desk.host[0], 2)
    assert bool(desk.violations) != is_known


@each
@pytest.mark.parametrize("is_known", [False, True])
def test_host_memory_that_is_given_back_while_it_is_written(
    eagerness: float, is_known: bool
) -> None:
    desk = Desk(eagerness=eagerness)
    pool = PoisoningPool(desk.double, alignment_bytes=UNIT)
    extent = pool.take(UNIT)
    assert extent is not None
    written = desk.save(extent.memory, 1)
    copy = desk.disk.write(extent.memory, [written])
    if is_known:
        copy.write.settle()
    pool.give_back(extent, [written])
    assert bool(desk.violations) != is_known


@each
@pytest.mark.parametrize("is_known", [False, True])
def test_a_read_before_its_write_is_over(eagerness: float, is_known: bool) -> None:
    desk = Desk(eagerness=eagerness)
    copy = desk.write(desk.host[0], 1)
    if is_known:
        copy.write.settle()
    read = desk.disk.read(copy, desk.host[1], [])
    read.settle()
    assert _holds(desk.host[1], 1) == is_known
    assert bool(desk.violations) != is_known


@each
@pytest.mark.parametrize("waits", [False, True])
def test_a_read_into_memory_that_a_lane_still_reads(eagerness: float, waits: bool) -> None:
    desk = Desk(eagerness=eagerness)
    copy = desk.written(desk.host[0], 1)
    desk.written(desk.host[1], 2)
    landing, landed = desk.load(desk.host[1])
    desk.disk.read(copy, desk.host[1], [landed] if waits else []).settle()
    desk.double.current().wait(landed)
    assert _holds(landing, 2) == waits
    assert bool(desk.violations) != waits


@each
@pytest.mark.parametrize("is_known", [False, True])
def test_a_copy_to_the_device_of_what_is_still_read(eagerness: float, is_known: bool) -> None:
    desk = Desk(eagerness=eagerness)
    read = desk.disk.read(desk.written(desk.host[0], 1), desk.host[1], [])
    if is_known:
        read.settle()
    landing, landed = desk.load(desk.host[1])
    desk.double.current().wait(landed)
    assert _holds(landing, 1) == is_known
    assert bool(desk.violations) != is_known


@each
def test_a_place_that_is_freed_while_it_is_read_or_twice(eagerness: float) -> None:
    desk = Desk(eagerness=eagerness)
    copy = desk.written(desk.host[0], 1)
    read = desk.disk.read(copy, desk.host[1], [])
    desk.disk.free(copy)
    read.settle()
    assert desk.violations == ["a place on the disk was freed while ssd read 1 reads [0, 1024)"]
    assert is_nan(desk.host[1])
    desk.disk.free(copy)
    desk.disk.read(copy, desk.host[1], [])
    assert desk.violations[1:] == [
        "a place on the disk was freed twice",
        "bytes are read that are not on the disk",
    ]


def test_what_the_host_was_told_is_over_is_known() -> None:
    desk = Desk(eagerness=1)
    copy = desk.write(desk.host[0], 1)
    assert copy.is_whole
    desk.disk.free(copy)
    assert desk.violations == []


# ---- when transfers run, and when they do not ----


def test_nothing_runs_before_it_is_forced_and_then_no_more_than_that() -> None:
    desk = Desk()
    copies = [desk.write(memory, n) for n, memory in enumerate(desk.host)]
    assert not any(copy.write.is_done() for copy in copies)
    copies[1].write.settle()
    assert [copy.write.is_done() for copy in copies] == [False, True, False]
    assert (desk.disk.writes.ran, desk.disk.writes.settled) == (1, 1)
    assert desk.disk.written_bytes == UNIT


def _order(seed: int) -> list[int]:
    desk = Desk(seed=seed)
    copies = [desk.write(memory, n) for n, memory in enumerate(desk.host)]
    desk.disk.run_all()
    spans_s = [copy.write.span_s or (0.0, 0.0) for copy in copies]
    return sorted(range(3), key=lambda n: spans_s[n])


def test_no_order_binds_transfers_but_the_seed() -> None:
    orders = [_order(seed) for seed in SEEDS]
    assert orders == [_order(seed) for seed in SEEDS]
    assert sorted(permutations(range(3))) == sorted({tuple(o) for o in orders})


def test_what_is_cancelled_was_never_there() -> None:
    desk = Desk()
    desk.disk.writes.haste = desk.disk.reads.haste = 0
    copy = desk.write(desk.host[0], 1)
    assert copy.write.cancel()
    assert (copy.write.is_done(), copy.write.error, copy.write.span_s) == (True, None, None)
    assert not copy.is_whole
    desk.save(desk.host[0], 2)
    desk.disk.free(copy)
    other = desk.written(desk.host[0], 3)
    assert desk.disk.read(other, desk.host[1], []).cancel()
    desk.save(desk.host[1], 4)
    desk.disk.free(other)
    assert desk.violations == []
    assert (desk.disk.writes.ran, desk.disk.reads.ran) == (1, 0)


def test_what_has_begun_goes_on() -> None:
    desk = Desk()
    desk.disk.writes.haste = 1
    copy = desk.write(desk.host[0], 1)
    assert not copy.write.cancel()
    desk.disk.writes.haste = 0
    assert not copy.write.cancel()
    assert not copy.write.is_done()
    desk.save(desk.host[0], 2)
    assert len(desk.violations) == 1
    copy.write.settle()
    assert not copy.write.cancel()


def test_some_seeds_cancel_and_some_do_not() -> None:
    desks = [Desk(seed=seed) for seed in SEEDS]
    cancelled = [desk.write(desk.host[0], 1).write.cancel() for desk in desks]
    assert 10 < sum(cancelled) < 50


# ---- faults, and room ----


def _fault() -> SpillError:
    return SpillError("planted", directory=Path("double"), operation="read", errno=errno.EIO)


def test_the_nth_transfer_fails_and_leaves_nan() -> None:
    desk, fault = Desk(), _fault()
    copies = [desk.written(memory, n) for n, memory in enumerate(desk.host)]
    desk.disk.reads.fail(2, fault)
    reads = []
    for copy, memory in zip(copies, desk.host, strict=True):
        reads.append(desk.disk.read(copy, memory, []))
        reads[-1].settle()
    assert [read.error for read in reads] == [None, fault, None]
    assert [is_nan(memory) for memory in desk.host] == [False, True, False]
    assert desk.violations == []
    with pytest.raises(ValueError, match="number=0"):
        desk.disk.reads.fail(0, fault)


def test_a_copy_is_not_whole_after_a_failure_and_reading_it_is_found() -> None:
    desk = Desk()
    desk.disk.writes.fail(1, _fault())
    copy = desk.written(desk.host[0], 1)
    assert copy.is_over
    assert not copy.is_whole
    desk.disk.read(copy, desk.host[1], []).settle()
    assert is_nan(desk.host[1])
    assert desk.violations == ["bytes are read that are not on the disk"]


def test_what_a_failed_copy_should_have_brought_is_not_written() -> None:
    desk, fault = Desk(), OSError("no such page")
    desk.double.fail_copy(1, fault)
    copy = desk.written(desk.host[0], 1)
    assert isinstance(copy.write.error, TransferError)
    assert copy.write.error.__cause__ is fault
    assert (copy.write.span_s, desk.disk.writes.ran) == (None, 0)


def test_a_full_disk_says_so_and_one_without_a_limit_grows() -> None:
    desk = Desk(limit_bytes=2 * UNIT)
    copies = [desk.written(memory, 1) for memory in desk.host[:2]]
    with pytest.raises(SpillError, match="no space for 1024 bytes") as caught:
        desk.write(desk.host[2], 1)
    assert caught.value.errno == errno.ENOSPC
    desk.disk.free(copies[0])
    again = desk.written(desk.host[2], 1)
    assert (again.place.start, copies[1].place.start) == (0, UNIT)
    growing = Desk()
    growing.disk.reserve(UNIT)
    assert growing.disk.size_bytes == UNIT
    for memory in growing.host:
        growing.write(memory, 1)
    assert growing.disk.size_bytes == growing.disk.lent_bytes == 3 * UNIT


def test_a_host_that_waits_for_an_event_is_counted() -> None:
    desk = Desk()
    written = desk.save(desk.host[0], 1)
    written.synchronize()
    assert _holds(desk.host[0], 1)
    assert desk.double.host_syncs == 1
    desk.disk.write(desk.host[0], [])
    assert desk.violations == []
