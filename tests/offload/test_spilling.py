"""The host's memory with a disk behind it, on a real disk: who is here, who waits, and what becomes
of faults.

Races are the business of `tests/races`.
"""

from __future__ import annotations

import errno
import gc
import random
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ssd
from offload import Lane, MemoError, SpillError, TensorStore, Tier, TransferError
from offload.budget import Budget
from offload.host_pool import HostPool
from offload.parcels import Parcel
from offload.spool_disk import SpoolDisk, open_disk
from offload.threads import ThreadLane, ThreadStreams
from offload.transfers import HostTier
from tests.offload.disks import disk_store
from tests.ssd.disk import open_descriptors
from tests.ssd.faulty import Fail, Fault, FaultyEngine, Stall

UNIT = 4096
"""Bytes of the smallest parcel, whatever the disk's alignment."""

CPU = torch.device("cpu")


def _numbers(first: int, units: int = 1) -> Tensor:
    return torch.arange(first, first + units * UNIT // 4, dtype=torch.int32)


def _store(folder: Path, **options: Any) -> TensorStore:
    return disk_store(folder, devices=(CPU,), **options)


def _faulty_tier(folder: Path, script: Iterable[Fault], **options: Any) -> HostTier:
    """An engine over a disk whose operations go by a script."""
    spool = ssd.open_spool([folder], 8 << 20, engine="threads")
    spool.queue.engine = FaultyEngine(spool.queue.engine, script)
    spool.queue._max_retries = 0
    disk = SpoolDisk(spool, can_grow=False)
    streams = ThreadStreams()
    pool = HostPool(streams.host_memory, alignment_bytes=disk.alignment_bytes)
    return HostTier(streams, pool, disk=disk, **options)


def _settled(tier: HostTier) -> None:
    """Let all be over that is under way."""
    tier.streams.synchronize()
    space = tier.space
    for _, transfer, _ in list(space._transfers):
        transfer.settle()
    tier.sweep()


def test_bytes_come_back_from_the_disk(tmp_path: Path) -> None:
    store = _store(tmp_path, in_flight_bytes=2 * UNIT)
    tickets = [store.put([_numbers(100 * n)], Tier.SSD) for n in range(12)]
    tier = store.hosts[CPU]
    staged = [p for p in tier.space._here if p.tier is Tier.SSD]
    assert sum(parcel.size_bytes for parcel in staged) <= 2 * UNIT
    for n in random.Random(1).sample(range(12), 12):
        assert torch.equal(store.get(tickets[n])[0], _numbers(100 * n))
    _settled(tier)
    counts = tier.meter.counts
    assert counts[Lane.SSD_WRITE].moved_bytes >= 10 * UNIT
    assert counts[Lane.SSD_READ].moved_bytes >= 10 * UNIT
    assert store.counts[Tier.SSD].moved_bytes == 12 * UNIT


@pytest.mark.parametrize("tier_of", ["host", "ssd", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_the_limit_of_host_bytes_is_kept_and_every_byte_comes_back(
    tmp_path: Path, tier_of: str, seed: int
) -> None:
    rng = random.Random(seed)
    tiers = {"host": [Tier.HOST], "ssd": [Tier.SSD], "both": [Tier.HOST, Tier.SSD]}[tier_of]
    store = _store(tmp_path, in_flight_bytes=rng.choice([0, 3 * UNIT, None]), host_bytes=9 * UNIT)
    lent: dict[int, tuple[Any, int]] = {}
    for number in range(150):
        if len(lent) > 30 or (lent and rng.random() < 0.3):
            # Mostly the last one, as backward does, but not always.
            mark = max(lent) if rng.random() < 0.7 else rng.choice(list(lent))
            ticket, units = lent.pop(mark)
            assert torch.equal(store.get(ticket)[0], _numbers(mark, units))
        else:
            units = rng.randint(1, 4)
            lent[number] = store.put([_numbers(number, units)], rng.choice(tiers)), units
        if rng.random() < 0.3:
            store.close_group()
        assert store.hosts[CPU].pool.size_bytes == 9 * UNIT
    lent.clear()
    del ticket
    _settled(store.hosts[CPU])
    assert store.hosts[CPU].pool.free_bytes == 9 * UNIT


def test_the_memory_of_the_host_is_there_from_the_start() -> None:
    store = TensorStore(host_bytes=7 * UNIT, devices=(CPU,))
    store.prepare()
    assert store.hosts[CPU].pool.size_bytes == 7 * UNIT


def test_without_a_disk_the_limit_is_told() -> None:
    store = TensorStore(host_bytes=3 * UNIT, devices=(CPU,))
    tickets = [store.put([_numbers(n)], Tier.HOST) for n in range(3)]
    with pytest.raises(MemoError, match=r"host_bytes leaves no room.*spill_dir"):
        store.put([_numbers(4)], Tier.HOST)
    assert torch.equal(store.get(tickets[0])[0], _numbers(0))
    del tickets
    store.put([_numbers(5)], Tier.HOST)


def test_a_parcel_larger_than_the_host_is_told(tmp_path: Path) -> None:
    store = _store(tmp_path, host_bytes=3 * UNIT)
    with pytest.raises(MemoError, match="no room for 16,384 bytes"):
        store.put([_numbers(0, units=4)], Tier.SSD)


def test_another_device_than_at_the_start_is_told(tmp_path: Path) -> None:
    store = disk_store(tmp_path, devices=(torch.device("cuda:3"),))
    store.host_bytes = UNIT
    with pytest.raises(MemoError, match="divided among cuda:3"):
        store.put([_numbers(0)], Tier.HOST)


def test_what_overflows_is_what_backward_wants_last(tmp_path: Path) -> None:
    store = _store(tmp_path, in_flight_bytes=UNIT, host_bytes=4 * UNIT)
    tickets = []
    for n in range(8):
        tickets.append(store.put([_numbers(n)], Tier.HOST))
        store.close_group()
    here = {parcel.group for parcel in store.hosts[CPU].space._here}
    assert here == {4, 5, 6, 7}
    for n in reversed(range(8)):
        assert torch.equal(store.get(tickets.pop())[0], _numbers(n))


def test_what_will_overflow_is_written_ahead_the_oldest_first(tmp_path: Path) -> None:
    store = _store(tmp_path, in_flight_bytes=UNIT, host_bytes=6 * UNIT, expected_groups=8)
    tickets = []
    for n in range(6):  # nothing has to leave yet
        tickets.append(store.put([_numbers(n)], Tier.HOST))
        store.close_group()
    tier = store.hosts[CPU]
    _settled(tier)
    written = {parcel.group for parcel in tier.groups if parcel.copy is not None}
    assert written == {0, 1, 2}  # eight groups and one more, less the six that there is room for


def test_of_what_is_on_the_disk_too_the_last_wanted_leaves_first(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [], budget=Budget(4 * UNIT))
    first = [_saved(tier, n) for n in range(4)]
    _settled(tier)
    assert all(parcel.is_clean for parcel in first)
    _saved(tier, 4)
    assert [parcel.extent is None for parcel in first] == [True, False, False, False]


def test_what_is_still_here_is_not_read(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [], budget=Budget(100 * UNIT))
    parcels = [_saved(tier, n) for n in range(5)]
    for parcel in parcels:
        tier._retire(parcel)  # the device has let it go
    _settled(tier)
    for n, parcel in enumerate(parcels):
        assert parcel.is_clean
        assert torch.equal(tier.load(parcel)[0], _numbers(n))
    assert tier.meter.counts[Lane.SSD_READ].copies == 0
    assert tier.meter.forwarded_bytes == 0


def test_what_a_lane_waited_for_is_counted(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [], budget=Budget(100 * UNIT))
    ready = threading.Event()
    assert isinstance(tier.streams.d2h, ThreadLane)
    tier.streams.d2h._executor.submit(ready.wait)  # the copy to the host is late
    parcel = tier.save([_numbers(0)], tier=Tier.SSD)
    time.sleep(0.2)
    ready.set()
    _settled(tier)
    assert parcel.is_clean
    assert tier.meter.counts[Lane.SSD_WRITE].waited_s >= 0.15
    assert tier.meter.counts[Lane.SSD_READ].waited_s == 0


def test_a_write_still_queued_is_dropped_with_its_parcel(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [Stall(0.3)] * 20, budget=Budget(100 * UNIT))
    assert isinstance(tier.disk, SpoolDisk)
    hold = threading.Event()
    tier.disk._writes.submit(hold.wait)  # the queue's turn does not come before the drop
    for n in range(6):
        parcel = tier.save([_numbers(n)], tier=Tier.SSD)
        assert torch.equal(tier.load(parcel)[0], _numbers(n))
        tier.drop(parcel)
    tier.sweep()
    hold.set()
    _settled(tier)
    assert tier.meter.spared_bytes == 6 * UNIT
    assert tier.meter.counts[Lane.SSD_WRITE].copies == 0
    assert tier.pool.free_bytes == tier.pool.size_bytes
    assert tier.disk._spool.free_bytes == tier.disk._spool.size_bytes


def test_reads_run_ahead_of_backward_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = _faulty_tier(tmp_path, [], budget=Budget(2 * UNIT))
    groups = [_saved(tier, n) for n in range(8)]
    _settled(tier)
    order: list[int] = []
    ahead: list[int] = []
    fetch = type(tier.space).fetch

    def watched(self: Any, parcel: Parcel, **options: Any) -> bool:
        was_here = parcel.extent is not None
        result = fetch(self, parcel, **options)
        if result and not was_here:
            order.append(parcel.group)
            ahead.extend([] if "extent" in options else [parcel.group])  # nobody waits for it
        return result

    monkeypatch.setattr(type(tier.space), "fetch", watched)
    for n in reversed(range(8)):
        (got,) = tier.load(groups[n])
        assert torch.equal(got, _numbers(n))
        tier.drop(groups[n])
    assert order == sorted(order, reverse=True)
    assert set(order) >= set(range(6))
    assert set(ahead) >= set(range(5))


def _saved(tier: HostTier, number: int) -> Parcel:
    parcel = tier.save([_numbers(number)], tier=Tier.SSD)
    tier.close_group()
    return parcel


def test_a_write_that_fails_ends_the_step_and_the_next_one_runs(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [Fail(errno.EIO)], budget=Budget(UNIT))
    parcels = [tier.save([_numbers(0)], tier=Tier.SSD)]
    with pytest.raises(SpillError, match=r"could not write.*EIO") as caught:
        parcels += [tier.save([_numbers(n)], tier=Tier.SSD) for n in range(1, 6)]
    assert (caught.value.directory, caught.value.errno) == (tmp_path, errno.EIO)
    assert isinstance(caught.value.__cause__, ssd.SpillError)
    for parcel in parcels:
        tier.drop(parcel)
    _settled(tier)
    again = [tier.save([_numbers(n)], tier=Tier.SSD) for n in range(6)]
    assert all(torch.equal(tier.load(again[n])[0], _numbers(n)) for n in range(6))


def test_bytes_whose_write_failed_are_still_here(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [Fail(errno.EIO)], budget=Budget(2 * UNIT))
    parcel = tier.save([_numbers(7)], tier=Tier.SSD)
    while tier.space._writing:  # nobody waits for it
        tier.sweep()
    assert torch.equal(tier.load(parcel)[0], _numbers(7))
    tier.drop(parcel)
    tier.sweep()
    with pytest.warns(ssd.SpillWarning, match="could not write"):
        tier.save([_numbers(1)], tier=Tier.SSD)


def test_a_read_that_fails_is_told_and_the_next_try_succeeds(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [None, None, Fail(errno.EIO)], budget=Budget(0))
    first, second = (tier.save([_numbers(n)], tier=Tier.SSD) for n in range(2))
    _settled(tier)
    assert first.extent is None
    with pytest.raises(SpillError, match=r"could not read.*EIO"):
        tier.load(first)
    assert torch.equal(tier.load(first)[0], _numbers(0))
    assert torch.equal(tier.load(second)[0], _numbers(1))


def test_a_full_disk_is_told_and_the_next_step_runs(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [], budget=Budget(8 << 20))
    units = (3 << 20) // UNIT
    kept = [tier.save([_numbers(n, units)], tier=Tier.SSD) for n in range(2)]
    with pytest.raises(SpillError, match=r"could not allocate.*ENOSPC") as caught:
        tier.save([_numbers(2, units)], tier=Tier.SSD)
    assert caught.value.errno == errno.ENOSPC
    for parcel in kept:
        tier.drop(parcel)
    again = tier.save([_numbers(3, units)], tier=Tier.SSD)
    assert torch.equal(tier.load(again)[0], _numbers(3, units))


def test_a_copy_to_the_host_that_failed_is_never_written(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [], budget=Budget(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offload.threads.numpy.copyto", _refuse)
        with pytest.raises(TransferError, match="no such page"):
            tier.save([_numbers(0)], tier=Tier.SSD)
    _settled(tier)
    assert tier.meter.counts[Lane.SSD_WRITE].copies == 0


def _refuse(*_: object) -> None:
    raise OSError("no such page")


def test_the_spool_grows_with_what_is_asked_for(tmp_path: Path) -> None:
    store = _store(tmp_path, in_flight_bytes=UNIT, expected_groups=5)
    units = (2 << 20) // UNIT
    tickets = []
    for n in range(6):  # one more than expected
        tickets.append(store.put([_numbers(n, units)], Tier.SSD))
        store.close_group()
        assert store.disk is not None
        assert store.disk.size_bytes >= 5 * (2 << 20)
    for n in range(6):
        assert torch.equal(store.get(tickets[n])[0], _numbers(n, units))


def test_a_spool_as_large_as_a_step_serves_the_next_one(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [Stall(0.2)] * 8, budget=Budget(64 << 20))
    units = (1 << 20) // UNIT
    for step in range(2):
        parcels = [tier.save([_numbers(n + step, units)], tier=Tier.SSD) for n in range(8)]
        for n in reversed(range(8)):
            assert torch.equal(tier.load(parcels[n])[0], _numbers(n + step, units))
            tier.drop(parcels[n])  # its write may be under way


def test_a_disk_with_little_left_gives_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path, in_flight_bytes=0)
    disk = store.disk
    assert isinstance(disk, SpoolDisk)
    reserve, limit = ssd.Spool.reserve, 10 << 20

    def limited(self: ssd.Spool, size_bytes: int) -> None:
        if size_bytes > limit:
            raise ssd.SpillError("full", directory=tmp_path, operation="reserve", errno=28)
        reserve(self, size_bytes)

    monkeypatch.setattr(ssd.Spool, "reserve", limited)
    units = (1 << 20) // UNIT
    tickets = [store.put([_numbers(n, units)], Tier.SSD) for n in range(10)]
    with pytest.raises(SpillError, match="full"):
        store.put([_numbers(10, units)], Tier.SSD)
    assert all(torch.equal(store.get(tickets[n])[0], _numbers(n, units)) for n in range(10))


def test_what_a_refused_growth_left_undone_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path, in_flight_bytes=0, expected_groups=5)
    asked: list[int] = []

    def refuse(self: SpoolDisk, size_bytes: int) -> None:
        asked.append(size_bytes)
        raise SpillError("full", directory=tmp_path, operation="reserve", errno=28)

    monkeypatch.setattr(SpoolDisk, "reserve", refuse)
    for _ in range(2):
        ticket = store.put([_numbers(0)], Tier.SSD)
        with pytest.raises(SpillError, match="full"):
            store.close_group()
        del ticket
    assert asked == [5 * UNIT, 5 * UNIT]


def test_an_extent_whose_last_copy_failed_serves_others(tmp_path: Path) -> None:
    store = _store(tmp_path, in_flight_bytes=UNIT, host_bytes=3 * UNIT)
    tier = store.hosts[CPU]
    tickets = [store.put([_numbers(n)], Tier.HOST) for n in range(5)]
    _settled(tier)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offload.threads.numpy.copyto", _refuse)
        bad = tier.save([_numbers(99)])
        with pytest.raises(TransferError, match="no such page"):
            tier._retire(bad)
    tier.drop(bad)
    tier.sweep()
    for n in range(5):
        assert torch.equal(store.get(tickets[n])[0], _numbers(n))


def test_short_sequences_after_a_long_one_wear_nothing(tmp_path: Path) -> None:
    store = _store(tmp_path, in_flight_bytes=UNIT, expected_groups=4, host_bytes=8 * UNIT)
    written = []
    for units in (3, 1, 1, 1):
        tickets = []
        for n in range(4):
            tickets.append(store.put([_numbers(n, units)], Tier.HOST))
            store.close_group()
        while tickets:
            store.get(tickets.pop())
        _settled(store.hosts[CPU])
        assert store.disk is not None
        written.append(store.disk.written_bytes)
    assert written[0] > 0
    assert written[1] - written[0] <= 2 * UNIT  # its first layer does not know yet
    assert written[3] - written[2] <= 2 * UNIT


def test_a_warning_that_is_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    tier = _faulty_tier(tmp_path, [Fail(errno.ENOSPC)], budget=Budget(1 << 20))
    parcel = tier.save([_numbers(0)], tier=Tier.SSD)
    while tier.space._writing:
        tier.sweep()
    tier.drop(parcel)
    tier.sweep()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ssd.SpillWarning)
        with pytest.raises(ssd.SpillWarning):
            tier.save([_numbers(1)], tier=Tier.SSD)
    _settled(tier)
    assert (len(tier.space._here), len(tier._flying), len(tier.groups)) == (0, 0, 0)
    assert tier.pool.free_bytes == tier.pool.size_bytes


def test_a_store_that_is_collected_in_its_own_thread_is_closed(tmp_path: Path) -> None:
    gc.collect()
    before, gone = open_descriptors(), threading.Event()
    store = _store(tmp_path, in_flight_bytes=1 << 20)
    disk = store.disk
    assert isinstance(disk, SpoolDisk)
    held = [store, store.put([_numbers(0)], Tier.SSD)]

    def let_go() -> None:
        gone.wait()
        held.clear()
        gc.collect()

    disk._writes.submit(let_go)
    del store, disk
    gone.set()
    deadline_s = time.monotonic() + 20
    while open_descriptors() > before and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert open_descriptors() == before


def test_nothing_is_left_when_the_store_goes(tmp_path: Path) -> None:
    gc.collect()
    before, threads = open_descriptors(), threading.active_count()
    store = _store(tmp_path, in_flight_bytes=0)
    assert torch.equal(store.get(store.put([_numbers(1)], Tier.SSD))[0], _numbers(1))
    assert open_descriptors() > before
    assert list(tmp_path.iterdir()) == []
    del store
    assert open_descriptors() == before
    assert threading.active_count() <= threads + 2  # the lanes' own, which end by themselves


def test_wrong_disks_are_told_in_our_words(tmp_path: Path) -> None:
    with pytest.raises(SpillError, match=r"could not create a file in .*/none"):
        open_disk([tmp_path / "none"])
