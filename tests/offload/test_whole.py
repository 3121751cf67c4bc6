"""A layer that cannot be cut: one gradient under every placement, and what each of them holds."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from offload import LayerCount, Placement, TensorStore, Tier, run_whole
from tests.offload.disks import disk_store

TOKENS, HIDDEN = 301, 7


class _Mixing(nn.Module):
    """A layer that draws random numbers and mixes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        self.runs = 0

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.runs += 1
        mixed = nn.functional.dropout(self.linear(x), 0.3)
        return x + torch.tanh(mixed).cumsum(1) * mixed, None


def _run(
    layer: _Mixing, x: Tensor, placement: Placement, store: TensorStore, count: LayerCount
) -> Tensor:
    torch.manual_seed(6)
    y, rest = run_whole(
        layer,
        x,
        placement=placement,
        constants=tuple(layer.parameters()),
        store=store,
        count=count,
    )
    assert rest is None
    result: Tensor = y
    return result


def test_gradients_are_equal_bit_by_bit() -> None:
    layer, x = _Mixing(), torch.randn(2, TOKENS, HIDDEN).requires_grad_()
    torch.manual_seed(6)
    inputs = [x, *layer.parameters()]
    want = torch.autograd.grad(layer(x)[0].square().sum(), inputs)
    for placement in Placement:
        y = _run(layer, x, placement, disk_store(), LayerCount())
        found = torch.autograd.grad(y.square().sum(), inputs)
        assert all(map(torch.equal, found, want)), placement


def test_the_host_holds_what_the_graph_saved_but_no_parameter() -> None:
    layer, x = _Mixing(), torch.randn(2, TOKENS, HIDDEN).requires_grad_()
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = layer(x)
    for param in layer.parameters():
        saved.pop(param.data_ptr(), None)
    store, count = TensorStore(), LayerCount()
    y = _run(layer, x, Placement.HOST, store, count)
    host = store.counts[Tier.HOST]
    assert len(saved) >= 4, kept
    assert host.held_bytes == sum(saved.values()) == count.stored_bytes[Tier.HOST]
    y.sum().backward()
    del y
    gc.collect()
    assert host.held_bytes == 0


@pytest.mark.parametrize(("placement", "runs"), [("keep", 1), ("host", 1), ("recompute", 2)])
def test_only_recompute_runs_twice(placement: str, runs: int) -> None:
    layer, x = _Mixing(), torch.randn(2, TOKENS, HIDDEN).requires_grad_()
    count = LayerCount()
    _run(layer, x, Placement(placement), TensorStore(), count).sum().backward()
    assert layer.runs == runs
    assert count.tiles == {Placement(placement): 1}
    assert count.calls == 1
