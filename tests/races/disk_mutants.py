"""The catalogue's races once more, between the host's memory and a disk.

Scope: one small patch of the real engine each. A number's letter tells it from the race of that
number between device and host, in `mutants.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from offload import Lane
from offload.disk import DiskCopy
from offload.host_pool import Extent
from offload.host_space import HostSpace
from offload.parcels import Parcel
from tests.races.mutants import Fault, Mutant, Patch


def _reads_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    fetch = HostSpace.fetch

    def mutated(self: HostSpace, parcel: Parcel, *, extent: Extent | None = None) -> bool:
        if parcel.extent is None:
            extent = extent or self._take(parcel.size_bytes, parcel.tier)
            if extent is None:
                return False
            extent = replace(extent, events=())
        return fetch(self, parcel, extent=extent)

    patch.setattr(HostSpace, "fetch", mutated)


def _staging_is_used_again_while_it_is_written(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: Parcel) -> bool:
        return self.copy is not None and (self.fetch is None or self.fetch.is_done())

    begin = HostSpace._begin_write

    def noted_at_once(self: HostSpace, parcel: Parcel) -> None:
        begin(self, parcel)
        self._note_clean(parcel)

    patch.setattr(Parcel, "is_clean", property(mutated))
    patch.setattr(HostSpace, "_begin_write", noted_at_once)


def _what_is_released_leaves_at_once(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: HostSpace) -> None:
        while self._leaving:
            self._give_back(*self._leaving.popleft())

    patch.setattr(HostSpace, "_let_leave", mutated)


def _landing_does_not_wait_for_the_read(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: HostSpace, parcel: Parcel) -> None:
        self.fetch(parcel, extent=parcel.extent or self.take(parcel.size_bytes, parcel.tier))

    patch.setattr(HostSpace, "bring", mutated)


def _place_is_free_while_it_is_read(patch: pytest.MonkeyPatch) -> None:
    fetch = HostSpace.fetch

    def mutated(self: HostSpace, parcel: Parcel, *, extent: Extent | None = None) -> bool:
        was_here = parcel.extent is not None
        is_coming = fetch(self, parcel, extent=extent)
        if is_coming and not was_here:
            assert self.disk is not None
            assert parcel.copy is not None
            self.disk.free(parcel.copy)
            parcel.copy = None
        return is_coming

    patch.setattr(HostSpace, "fetch", mutated)


def _errors_of_reads_are_swallowed(patch: pytest.MonkeyPatch) -> None:
    poll = HostSpace.poll

    def mutated(self: HostSpace) -> None:
        for parcel in self._reading:
            if parcel.fetch is not None and parcel.fetch.is_done():
                parcel.fetch = None
        poll(self)

    patch.setattr(HostSpace, "poll", mutated)


def _errors_of_writes_are_swallowed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DiskCopy, "is_whole", property(lambda self: self.write.is_done()))


def _writes_do_not_wait_for_the_copy(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: HostSpace, parcel: Parcel) -> None:
        assert self.disk is not None
        assert parcel.extent is not None
        parcel.copy = self.disk.write(parcel.extent.memory, [])
        self._note(Lane.SSD_WRITE, parcel.copy.write, parcel.size_bytes)
        self._writing.append(parcel)

    patch.setattr(HostSpace, "_begin_write", mutated)


def _mutant(number: str, race: str, place: str, plant: Patch, fault: Fault | None = None) -> Mutant:
    return Mutant(number, race, place, plant, fault, has_disk=True)


DISK_MUTANTS = (
    _mutant(
        "2b",
        "a read lands in host memory that a copy to the device still reads",
        "HostSpace.fetch: without the extent's events",
        _reads_do_not_wait,
    ),
    _mutant(
        "3b",
        "staging is used again while the disk writes from it, and read before it is written",
        "Parcel.is_clean: before the write is over",
        _staging_is_used_again_while_it_is_written,
    ),
    _mutant(
        "3c",
        "what was dropped is used again while a transfer that was not called off is under way",
        "HostSpace._let_leave: whether transfers are over or not",
        _what_is_released_leaves_at_once,
    ),
    _mutant(
        "6b",
        "a copy to the device does not wait for the read",
        "HostSpace.bring: without waiting",
        _landing_does_not_wait_for_the_read,
    ),
    _mutant(
        "9b",
        "a place on the disk is given to another while it is read",
        "HostSpace.fetch: frees the place when its read is submitted",
        _place_is_free_while_it_is_read,
    ),
    _mutant(
        "10b",
        "an error of a read is swallowed",
        "HostSpace.poll: a read that is over has brought its bytes",
        _errors_of_reads_are_swallowed,
        Fault.READ,
    ),
    _mutant(
        "10c",
        "an error of a write is swallowed",
        "DiskCopy.is_whole: once the write is over",
        _errors_of_writes_are_swallowed,
        Fault.WRITE,
    ),
    _mutant(
        "11b",
        "a write is begun before the copy to the host has ended",
        "HostSpace._begin_write: without the copy's event",
        _writes_do_not_wait_for_the_copy,
    ),
)
