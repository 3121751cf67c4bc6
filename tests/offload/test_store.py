"""The store: bytes come back as they went, and every one of them is counted."""

from __future__ import annotations

import pytest
import torch

from offload import MemoError, TensorStore, Tier


@pytest.mark.parametrize("tier", list(Tier))
def test_tensors_of_odd_strides_come_back(tier: Tier) -> None:
    store = TensorStore()
    base = torch.randn(5, 7)
    for tensor in (base.T[1:6:2], base[0, :0], base[2, 3], base[1].expand(3, 7)):
        assert torch.equal(store.get(store.put(tensor, tier)), tensor)


def test_the_host_has_a_copy_and_the_device_a_reference() -> None:
    store, tensor = TensorStore(), torch.ones(3)
    host, device = store.put(tensor, Tier.HOST), store.put(tensor, Tier.DEVICE)
    assert store.get(device).data_ptr() == tensor.data_ptr()
    tensor.fill_(2)
    assert torch.equal(store.get(host), torch.ones(3))
    with pytest.raises(MemoError, match="inplace"):
        store.get(device)


def test_bytes_are_counted_until_the_ticket_is_dropped() -> None:
    store = TensorStore()
    count = store.counts[Tier.HOST]
    first = store.put(torch.zeros(5, dtype=torch.bfloat16), Tier.HOST)
    second = store.put(torch.zeros(3, dtype=torch.int64), Tier.HOST)
    assert (count.held_bytes, count.peak_bytes, count.moved_bytes) == (34, 34, 34)
    del first
    assert (count.held_bytes, count.peak_bytes, count.moved_bytes) == (24, 34, 34)
    store.reset_peaks()
    assert (count.held_bytes, count.peak_bytes, count.moved_bytes) == (24, 24, 0)
    del second
    assert count.held_bytes == 0
    assert store.counts[Tier.DEVICE].moved_bytes == 0


def test_what_is_stored_has_no_graph() -> None:
    store, leaf = TensorStore(), torch.ones(3, requires_grad=True)
    for tier in Tier:
        assert not store.get(store.put(leaf * 2, tier)).requires_grad
