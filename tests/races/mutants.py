"""The catalogue of races, each planted by one small patch of the real engine.

Scope: the patches of what lies between device and host; `disk_mutants.py` has the disk's. Each has
bitten a public offloader: its gradients were wrong while its loss still fell. The numbers are those
of the design's catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from offload import Lane, Tier, TransferError, Turn
from offload.host_pool import HostPool
from offload.parcels import Item, Parcel
from offload.streams import Event, Stream
from offload.transfers import HostTier
from tests.races.double import DoubleStreams

Patch = Callable[[pytest.MonkeyPatch], None]


class Fault(StrEnum):
    """What fails once: a copy between device and host, or a transfer of the disk."""

    COPY = "copy"
    WRITE = "write"
    READ = "read"


@dataclass(frozen=True)
class Mutant:
    """A race: its number, what it is, where it is planted, and how; the `fault` that it takes to
    see it, and whether it takes a disk.
    """

    number: str
    race: str
    place: str
    plant: Patch
    fault: Fault | None = None
    has_disk: bool = False


def _source_is_freed_early(patch: pytest.MonkeyPatch) -> None:
    wait = HostTier._let_compute_wait

    def mutated(self: HostTier, compute: Stream, lane: Lane, event: Event) -> None:
        if lane is not Lane.D2H:
            wait(self, compute, lane, event)

    patch.setattr(HostTier, "_let_compute_wait", mutated)


def _landing_does_not_wait_for_compute(patch: pytest.MonkeyPatch) -> None:
    wait = HostTier._let_lane_wait

    def mutated(self: HostTier, lane: Lane, events: Sequence[Event]) -> None:
        wait(self, lane, events[:1] if lane is Lane.H2D else events)

    patch.setattr(HostTier, "_let_lane_wait", mutated)


def _buffer_is_used_again_at_once(patch: pytest.MonkeyPatch) -> None:
    land = HostTier._land

    def mutated(self: HostTier, parcel: Parcel) -> None:
        land(self, parcel)
        assert parcel.extent is not None
        self.pool.give_back(parcel.extent, [])
        patch.setattr(HostPool, "give_back", lambda *_: None)  # not twice

    patch.setattr(HostTier, "_land", mutated)


def _current_is_asked_within_the_lane(patch: pytest.MonkeyPatch) -> None:
    take = HostTier._take_landing

    def mutated(self: HostTier, parcel: Parcel) -> Tensor:
        with self.streams.h2d.active():
            return take(self, parcel)

    patch.setattr(HostTier, "_take_landing", mutated)


def _compute_is_remembered(patch: pytest.MonkeyPatch) -> None:
    current, remembered = DoubleStreams.current, dict[int, Stream]()

    def mutated(self: DoubleStreams) -> Stream:
        return remembered.setdefault(id(self), current(self))

    patch.setattr(DoubleStreams, "current", mutated)


def _first_reloads_have_no_event(patch: pytest.MonkeyPatch) -> None:
    wait = HostTier._let_compute_wait

    def mutated(self: HostTier, compute: Stream, lane: Lane, event: Event) -> None:
        is_warm = self.groups.number > self.expected_groups
        if lane is Lane.D2H or is_warm:
            wait(self, compute, lane, event)

    patch.setattr(HostTier, "_let_compute_wait", mutated)


def _a_check_hides_a_missing_wait(patch: pytest.MonkeyPatch) -> None:
    wait = HostTier._let_compute_wait

    def mutated(self: HostTier, compute: Stream, lane: Lane, event: Event) -> None:
        if lane is Lane.D2H:
            wait(self, compute, lane, event)
            return
        # Beside a GPU this stops the host until the copy is over, and all looks well.
        for parcel in self.groups:
            if parcel.landing is not None and parcel.extent is not None:
                torch.equal(parcel.landing, parcel.extent.memory)

    patch.setattr(HostTier, "_let_compute_wait", mutated)


def _strides_are_lost(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: Item, parcel: Tensor) -> Tensor:
        typed = parcel.narrow(0, self.start, self.size_bytes).view(self.dtype)
        return typed.view(self.shape)

    patch.setattr(Item, "cut", mutated)


class _Addresses:
    """Gives a storage the address of one of its size that is gone, as allocators do, but always."""

    def __init__(self) -> None:
        self._given: dict[tuple[int, int], StorageWeakRef] = {}

    def of(self, tensor: Tensor) -> tuple[int, int]:
        storage = tensor.untyped_storage()
        for address, ref in self._given.items():
            if not ref.expired() and ref == StorageWeakRef(storage):
                return address
        size_bytes = storage.nbytes()
        free = (n for n in count() if self._is_free((size_bytes, n)))
        address = size_bytes, next(free)
        self._given[address] = StorageWeakRef(storage)
        return address

    def _is_free(self, address: tuple[int, int]) -> bool:
        return address not in self._given or self._given[address].expired()


def _tensors_are_known_by_their_address(patch: pytest.MonkeyPatch) -> None:
    save, addresses = HostTier.save, _Addresses()
    known = dict[tuple[object, ...], tuple[HostTier, Parcel]]()

    def mutated(
        self: HostTier,
        tensors: Sequence[Tensor],
        turn: Turn = Turn.LAYER,
        tier: Tier = Tier.HOST,
    ) -> Parcel:
        key = (id(self), *map(addresses.of, tensors))
        if key not in known:
            # The tier is held, or this test had the race itself.
            known[key] = self, save(self, tensors, turn, tier)
        return known[key][1]

    patch.setattr(HostTier, "save", mutated)
    patch.setattr(HostTier, "drop", lambda *_: None)  # several owners now


def _errors_are_swallowed(patch: pytest.MonkeyPatch) -> None:
    wait = HostTier._let_compute_wait

    def mutated(self: HostTier, compute: Stream, lane: Lane, event: Event) -> None:
        with suppress(TransferError):
            wait(self, compute, lane, event)

    patch.setattr(HostTier, "_let_compute_wait", mutated)


def _writing_does_not_wait_for_compute(patch: pytest.MonkeyPatch) -> None:
    wait = HostTier._let_lane_wait

    def mutated(self: HostTier, lane: Lane, events: Sequence[Event]) -> None:
        wait(self, lane, events[:-1] if lane is Lane.D2H else events)

    patch.setattr(HostTier, "_let_lane_wait", mutated)


MUTANTS = (
    Mutant(
        "1",
        "the source is freed and reused before the copy to the host has ended",
        "HostTier._let_compute_wait: not for D2H",
        _source_is_freed_early,
    ),
    Mutant(
        "2",
        "the landing buffer is allocated on the compute stream, and the lane does not wait for it",
        "HostTier._let_lane_wait: H2D without compute's event",
        _landing_does_not_wait_for_compute,
    ),
    Mutant(
        "3",
        "a buffer is used again without an event",
        "HostTier._land: the extent goes back to the pool when its copy is submitted",
        _buffer_is_used_again_at_once,
    ),
    Mutant(
        "4",
        "the current stream is asked for inside the copy stream's context",
        "HostTier._take_landing: within h2d.active()",
        _current_is_asked_within_the_lane,
    ),
    Mutant(
        "5",
        "the compute stream is remembered at construction",
        "Streams.current: its first answer for ever",
        _compute_is_remembered,
    ),
    Mutant(
        "6",
        "a reload without an event in the first step",
        "HostTier._let_compute_wait: not for H2D in the first step",
        _first_reloads_have_no_event,
    ),
    Mutant(
        "7",
        "a check that synchronises hides a missing wait",
        "HostTier._let_compute_wait: torch.equal in the place of waiting for H2D",
        _a_check_hides_a_missing_wait,
    ),
    Mutant(
        "8",
        "a view's stride is lost on restore",
        "Item.cut: view in the place of as_strided",
        _strides_are_lost,
    ),
    Mutant(
        "9",
        "a tensor's identity is used again after it was freed",
        "HostTier.save: what has the address of a parcel's tensors is taken for them",
        _tensors_are_known_by_their_address,
    ),
    Mutant(
        "10",
        "an error of a copy is swallowed",
        "HostTier._let_compute_wait: except TransferError: pass",
        _errors_are_swallowed,
        Fault.COPY,
    ),
    Mutant(
        "11",
        "a copy is begun before its producer has finished",
        "HostTier._let_lane_wait: D2H without compute's event",
        _writing_does_not_wait_for_compute,
    ),
)
