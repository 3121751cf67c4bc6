"""The transfer engine on a plain CPU: states, budget, order of prefetch, and nothing that grows.

Races are the business of `tests/races`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from offload import Lane, MemoError, TransferError, Turn
from offload.budget import Budget
from offload.host_pool import ALIGNMENT_BYTES, HostPool
from offload.parcels import Parcel, State
from offload.streams import Stream
from offload.threads import ThreadStreams
from offload.transfers import HostTier

UNIT = ALIGNMENT_BYTES
"""Bytes of the smallest parcel."""


def _tier(in_flight_bytes: int | None = None) -> HostTier:
    streams = ThreadStreams()
    return HostTier(streams, HostPool(streams.host_memory), budget=Budget(in_flight_bytes))


def _numbers(first: int, units: int = 1) -> Tensor:
    return torch.arange(first, first + units * UNIT // 4, dtype=torch.int32)


def _forward(tier: HostTier, layers: int, parcels: int, units: int = 1) -> list[list[Parcel]]:
    groups = []
    for layer in range(layers):
        groups.append([tier.save([_numbers(100 * layer + 10 * n, units)]) for n in range(parcels)])
        tier.close_group()
    return groups


def _backward(tier: HostTier, groups: list[list[Parcel]], units: int = 1) -> None:
    for layer in reversed(range(len(groups))):
        for n, parcel in enumerate(groups[layer]):
            (got,) = tier.load(parcel)
            assert torch.equal(got, _numbers(100 * layer + 10 * n, units))
            tier.drop(parcel)
    tier.sweep()


def _landing_order(tier: HostTier, monkeypatch: pytest.MonkeyPatch) -> list[Parcel]:
    order: list[Parcel] = []
    land = HostTier._land

    def watched(self: HostTier, parcel: Parcel) -> None:
        order.append(parcel)
        land(self, parcel)

    monkeypatch.setattr(HostTier, "_land", watched)
    return order


@pytest.mark.parametrize("budget", [None, 0, UNIT, 3 * UNIT, 100 * UNIT])
def test_bytes_in_flight_never_pass_the_budget(budget: int | None) -> None:
    tier = _tier(budget)
    _backward(tier, _forward(tier, layers=5, parcels=3))
    allowed = 2 * 3 * UNIT if budget is None else budget
    assert tier.meter.in_flight_peak_bytes <= allowed
    assert tier.meter.in_flight_peak_bytes > 0 or budget == 0


def test_nothing_grows_over_steps() -> None:
    tier = _tier(4 * UNIT)
    sizes = []
    for _ in range(5):
        _backward(tier, _forward(tier, layers=4, parcels=3))
        tier.streams.synchronize()
        tier.sweep()
        state = (tier._flying, tier.groups, tier._dropped, tier.meter._pending)
        assert [len(part) for part in state] == [0, 0, 0, 0]
        sizes.append((tier.pool.size_bytes, tier.pool.free_bytes))
    assert len(set(sizes)) == 1
    assert sizes[0][0] == sizes[0][1]


def test_every_byte_comes_back_once() -> None:
    tier = _tier()
    _backward(tier, _forward(tier, layers=6, parcels=2))
    tier.streams.synchronize()
    tier.sweep()
    written, landed = (tier.meter.counts[lane].moved_bytes for lane in (Lane.D2H, Lane.H2D))
    assert written == 6 * 2 * UNIT
    assert tier.meter.forwarded_bytes + landed == written
    assert tier.meter.forwarded_bytes == 2 * 2 * UNIT  # the default: two groups


def test_what_is_still_here_is_forwarded() -> None:
    tier, tensor = _tier(), _numbers(1)
    assert tier.load(tier.save([tensor]))[0].data_ptr() == tensor.data_ptr()


def test_prefetch_goes_backward_by_groups_and_by_turns_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tier = _tier(0)
    turns = (Turn.PRE, Turn.LAYER, Turn.POST, Turn.POST)
    groups = []
    for layer in range(3):
        groups.append([tier.save([_numbers(layer)], turn) for turn in turns])
        tier.close_group()
    order = _landing_order(tier, monkeypatch)
    tier.budget.in_flight_bytes = 100 * UNIT
    tier.load(groups[2][1])
    wanted = [group[n] for group in reversed(groups) for n in (1, 2, 3, 0)]
    assert order == wanted


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_is_as_deep_as_the_budget(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = _tier(0)
    groups = _forward(tier, layers=4, parcels=2)
    order = _landing_order(tier, monkeypatch)
    tier.budget.in_flight_bytes = depth * UNIT
    tier.load(groups[3][0])
    assert len(order) == 1 + depth
    assert [parcel.state for parcel in order[1:]] == [State.LANDING] * depth


def test_a_parcel_may_be_loaded_again_until_it_is_dropped() -> None:
    tier = _tier(0)
    parcel = tier.save([_numbers(3)])
    first, second = tier.load(parcel)[0], tier.load(parcel)[0]
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_what_was_prefetched_for_nothing_is_freed() -> None:
    tier = _tier(0)
    groups = _forward(tier, layers=2, parcels=2)
    tier.budget.in_flight_bytes = 10 * UNIT
    tier.load(groups[1][0])
    assert groups[0][0].state is State.LANDING
    for group in groups:
        for parcel in group:
            tier.drop(parcel)
    tier.sweep()
    assert not tier._flying
    assert tier.pool.free_bytes == tier.pool.size_bytes


def test_one_that_is_larger_than_the_budget_is_not_held() -> None:
    tier = _tier(2 * UNIT)
    parcel = tier.save([_numbers(0, units=5)])
    assert parcel.state is State.STORED
    assert tier.meter.in_flight_peak_bytes == 0
    assert torch.equal(tier.load(parcel)[0], _numbers(0, units=5))


@pytest.mark.parametrize("budget", [0, None])
def test_a_change_in_place_before_the_copy_is_over_is_told(budget: int | None) -> None:
    tier, tensor = _tier(budget), _numbers(0)
    parcel = tier.save([tensor])
    tensor.add_(1)
    if budget is None:
        tier._make_room(100 * UNIT)  # lets the source go
        with pytest.raises(MemoError, match="inplace"):
            tier.load(parcel)
    else:
        assert torch.equal(tier.load(parcel)[0], _numbers(0))


class _Broken(ThreadStreams):
    def __init__(self, lane: str) -> None:
        super().__init__()
        broken: Stream = getattr(self, lane)
        copy = broken.copy

        def fail(target: Tensor, source: Tensor) -> None:
            copy(target, source[:-1])

        broken.copy = fail  # type: ignore[method-assign]


@pytest.mark.parametrize("budget", [0, None])
def test_a_failed_copy_to_the_host_is_an_error_and_leaves_nothing(budget: int | None) -> None:
    broken = _Broken("d2h")
    tier = HostTier(broken, HostPool(broken.host_memory), budget=Budget(budget))
    if budget == 0:
        with pytest.raises(TransferError):
            tier.save([_numbers(0)])
    else:
        parcel = tier.save([_numbers(0)])
        with pytest.raises(TransferError):
            tier._retire(parcel)
        with pytest.raises(TransferError, match="failed before"):
            tier.load(parcel)
        tier.drop(parcel)
    _assert_usable(tier)


def test_a_failed_copy_from_the_host_is_an_error_and_may_be_tried_again() -> None:
    broken = _Broken("h2d")
    tier = HostTier(broken, HostPool(broken.host_memory), budget=Budget(0))
    parcel = tier.save([_numbers(0)])
    with pytest.raises(TransferError):
        tier.load(parcel)
    tier.streams = ThreadStreams()
    assert torch.equal(tier.load(parcel)[0], _numbers(0))
    tier.drop(parcel)
    _assert_usable(tier)


def _assert_usable(tier: HostTier) -> None:
    tier.sweep()
    assert (len(tier.groups), len(tier._flying)) == (0, 0)
    assert tier.pool.free_bytes == tier.pool.size_bytes
    tier.streams = ThreadStreams()
    assert torch.equal(tier.load(tier.save([_numbers(7)]))[0], _numbers(7))


def test_a_forwarded_parcel_whose_copy_fails_is_told_and_freed() -> None:
    broken = _Broken("d2h")
    tier = HostTier(broken, HostPool(broken.host_memory))
    parcel = tier.save([_numbers(0)])
    assert torch.equal(tier.load(parcel)[0], _numbers(0))
    tier.drop(parcel)
    with pytest.raises(TransferError):
        tier.sweep()
    assert (len(tier.groups), len(tier._flying)) == (0, 0)
    assert tier.pool.free_bytes == tier.pool.size_bytes
