"""The store: bytes come back as they went, and every one of them is counted."""

from __future__ import annotations

import copy

import pytest
import torch

from offload import MemoError, TensorStore, Tier
from tests.offload.disks import disk_store


@pytest.mark.parametrize("tier", list(Tier))
def test_tensors_of_odd_strides_come_back(tier: Tier) -> None:
    store = disk_store()
    base = torch.randn(5, 7)
    for tensor in (base.T[1:6:2], base[0, :0], base[2, 3], base[1].expand(3, 7)):
        (got,) = store.get(store.put([tensor], tier))
        assert torch.equal(got, tensor)


def test_tensors_put_together_come_back_together() -> None:
    store = TensorStore(in_flight_bytes=0)
    tensors = [torch.randn(3, 5), torch.ones(7, dtype=torch.bool), torch.randn(2, 9).T.half()]
    got = store.get(store.put(tensors, Tier.HOST))
    for one, other in zip(got, tensors, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("tier", list(Tier))
def test_a_change_in_place_is_told(tier: Tier) -> None:
    store, tensor = disk_store(), torch.ones(3)
    ticket = store.put([tensor], tier)
    assert store.get(ticket)[0].data_ptr() == tensor.data_ptr()  # the host's, while it is written
    tensor.fill_(2)
    with pytest.raises(MemoError, match="inplace"):
        store.get(ticket)


def test_the_host_has_a_copy_of_its_own() -> None:
    store, tensor = TensorStore(in_flight_bytes=0), torch.ones(3)
    ticket = store.put([tensor], Tier.HOST)
    tensor.fill_(2)
    assert torch.equal(store.get(ticket)[0], torch.ones(3))


def test_copies_of_a_store_have_lanes_of_their_own() -> None:
    store = TensorStore(in_flight_bytes=5, expected_groups=3)
    store.put([torch.ones(3)], Tier.HOST)
    other = copy.deepcopy(store)
    assert (other.in_flight_bytes, other.expected_groups, other.hosts) == (5, 3, {})
    assert torch.equal(other.get(other.put([torch.ones(3)], Tier.HOST))[0], torch.ones(3))


def test_bytes_are_counted_until_the_ticket_is_dropped() -> None:
    store = TensorStore()
    count = store.counts[Tier.HOST]
    first = store.put([torch.zeros(5, dtype=torch.bfloat16)], Tier.HOST)
    second = store.put([torch.zeros(3, dtype=torch.int64)], Tier.HOST)
    assert (count.held_bytes, count.peak_bytes, count.moved_bytes) == (34, 34, 34)
    del first
    assert (count.held_bytes, count.peak_bytes, count.moved_bytes) == (24, 34, 34)
    store.reset_peaks()
    assert (count.held_bytes, count.peak_bytes, count.moved_bytes) == (24, 24, 0)
    del second
    assert count.held_bytes == 0
    assert store.counts[Tier.DEVICE].moved_bytes == 0


def test_what_is_stored_has_no_graph() -> None:
    store, leaf = disk_store(), torch.ones(3, requires_grad=True)
    for tier in Tier:
        assert not store.get(store.put([leaf * 2], tier))[0].requires_grad
