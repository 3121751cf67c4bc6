"""The engine over the double of a disk: parcels in any order, and what the doubles once found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from offload import Lane, Tier
from offload.host_space import HostSpace
from offload.parcels import Parcel
from offload.streams import Event
from tests.races.disk import DoubleDisk
from tests.races.double import DoubleStreams
from tests.races.harness import Rig, Schedule, host_tier
from tests.races.traffic import Traffic

UNIT = DoubleDisk.alignment_bytes
PROGRAMS = 150


def test_parcels_come_back_in_any_order() -> None:
    seen = Counter[Lane]()
    for seed in range(PROGRAMS):
        rig = Rig.of(Schedule(seed))
        traffic = Traffic(rig, seed)
        traffic.run()
        assert rig.streams.violations == [], f"program {seed}"
        assert traffic.wrong == [], f"program {seed}"
        assert rig.left() == {}, f"program {seed}"
        seen.update({lane: count.copies for lane, count in rig.host.meter.counts.items()})
    assert all(seen[lane] > PROGRAMS for lane in Lane), seen


def _rig(in_flight_bytes: int, host_bytes: int | None = None) -> Rig:
    """Nothing runs early, and what is cancelled has not begun."""
    streams = DoubleStreams(0, eagerness=0)
    disk = DoubleDisk(streams, 0)
    disk.reads.haste = disk.writes.haste = 0
    return Rig(streams, disk, host_tier(streams, in_flight_bytes, host_bytes, disk=disk))


def _numbers(value: float) -> Tensor:
    return torch.full((UNIT // 4,), float(value))


def _cancel_a_read_behind_a_landing() -> Rig:
    """One parcel lands while its extent is another's already, whose read is cancelled."""
    rig = _rig(1 << 20, host_bytes=2 * UNIT)
    assert rig.disk is not None
    space = rig.host.space
    landing, dropped = (rig.host.save([_numbers(n)], tier=Tier.SSD) for n in range(2))
    rig.host.close_group()
    for parcel in (landing, dropped):
        rig.host._retire(parcel)
    rig.disk.run_all()
    rig.host.sweep()
    rig.host._land(landing)
    for parcel in (landing, dropped):
        space._evict(parcel)
    assert space.fetch(dropped)
    rig.host.drop(dropped)
    rig.host.sweep()
    assert (rig.disk.reads.ran, rig.streams.h2d.is_idle) == (0, False)
    return rig


def test_a_cancelled_read_forgets_nobody_who_was_there_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _cancel_a_read_behind_a_landing().streams.violations == []

    def forget(self: HostSpace, parcel: Parcel, users: Sequence[Event]) -> None:
        assert parcel.extent is not None
        parcel.extent.events = ()
        vacate(self, parcel, users)

    vacate = HostSpace._vacate
    monkeypatch.setattr(HostSpace, "_vacate", forget)
    assert _cancel_a_read_behind_a_landing().streams.violations == [
        "host memory was given back while h2d reads [0, 1024)"
    ]


def test_what_was_waited_for_lands_once() -> None:
    rig, parcels = _rig(0), list[Parcel]()
    assert rig.disk is not None
    for n in range(6):
        parcels.append(rig.host.save([_numbers(n)], tier=Tier.SSD))
        rig.host.close_group()
    rig.disk.run_all()
    rig.host.sweep()
    rig.host.budget.in_flight_bytes = 1 << 20
    for parcel in reversed(parcels):
        rig.host.load(parcel)
    rig.streams.synchronize()
    rig.host.sweep()
    assert rig.host.meter.counts[Lane.H2D].copies == len(parcels)
    assert not rig.host._flying
