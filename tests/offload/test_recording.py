"""Recordings: every view comes back as it was, each storage is held once, sources not at all."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offload import Outlet, Recording, TensorStore, Tier, inlet, run_backward
from tests.offload.disks import disk_store


@st.composite
def _view(draw: st.DrawFn, base: Tensor) -> Tensor:
    """A view of a flat tensor at an offset, of up to three dims, with any strides (0 too)."""
    offset = draw(st.integers(0, base.numel() - 1))
    room, shape, strides = base.numel() - 1 - offset, [], []
    for _ in range(draw(st.integers(0, 3))):
        stride = draw(st.integers(0, 5))
        most = 4 if stride == 0 else min(4, room // stride + 1)
        size = draw(st.integers(1, most))
        room -= (size - 1) * stride
        shape.append(size)
        strides.append(stride)
    return base.as_strided(shape, strides, offset)


def _same(found: Tensor, view: Tensor) -> bool:
    return (
        torch.equal(found, view)
        and found.stride() == view.stride()
        and found.storage_offset() == view.storage_offset()
        and found.dtype is view.dtype
    )


@settings(deadline=None)
@given(st.data(), st.sampled_from(list(Tier)), st.sampled_from([5, 2000]))
def test_views_of_a_stored_tensor_come_back(data: st.DataObject, tier: Tier, size: int) -> None:
    store, base = disk_store(), torch.arange(float(size))
    views = [data.draw(_view(base)) for _ in range(3)]
    wanted = [view.clone() for view in views]
    layouts = [(view.stride(), view.storage_offset()) for view in views]
    recording = Recording(store, tier, {})
    packed = [recording.pack(view) for view in views]
    recording.seal()
    assert recording.nbytes == 4 * size  # once, however many views
    del views, base
    for part, want, layout in zip(packed, wanted, layouts, strict=True):
        found = recording.unpack(part)
        assert torch.equal(found, want)
        assert (found.stride(), found.storage_offset()) == layout


@settings(deadline=None)
@given(st.data())
def test_views_of_a_source_are_taken_from_the_one_given(data: st.DataObject) -> None:
    store, base = TensorStore(), torch.arange(60.0)
    source = base[7:]
    view = data.draw(_view(source.clone()))
    view = source.as_strided(view.shape, view.stride(), view.storage_offset() + 7)
    want = view.clone() + 100
    recording = Recording(store, Tier.HOST, {"x": source})
    packed = recording.pack(view)
    recording.seal()
    assert recording.nbytes == 0
    elsewhere = torch.cat([torch.full((3,), -1.0), base[7:] + 100])[3:]
    with recording.bound({"x": elsewhere}):
        assert torch.equal(recording.unpack(packed), want)


def test_sources_that_share_a_storage_are_told_apart() -> None:
    fused = torch.arange(12.0).view(2, 6)
    sources = dict(zip("qkv", fused.split(2, dim=1), strict=True))
    recording = Recording(TensorStore(), Tier.HOST, sources)
    packed = {name: recording.pack(source.T) for name, source in sources.items()}
    recording.seal()
    again = {
        name: source.clone() * 0 - index for index, (name, source) in enumerate(sources.items())
    }
    layout = {name: torch.empty_strided((2, 2), (6, 1)).copy_(t) for name, t in again.items()}
    with recording.bound(layout):
        for index, name in enumerate("qkv"):
            assert recording.unpack(packed[name]).unique().tolist() == [-index]


def test_constants_are_referenced_and_never_moved() -> None:
    store, table = TensorStore(), torch.randn(3000)
    recording = Recording(store, Tier.HOST, {}, (table,))
    packed = recording.pack(table.view(30, 100).T)
    recording.seal()
    assert isinstance(packed, Tensor)
    assert recording.unpack(packed).data_ptr() == table.data_ptr()
    assert store.counts[Tier.HOST].moved_bytes == 0


def test_other_dtypes_of_one_storage_come_back() -> None:
    z = torch.randn(700, dtype=torch.complex64)
    pairs = torch.view_as_real(z)[3:]
    recording = Recording(TensorStore(), Tier.HOST, {})
    packed = [recording.pack(t) for t in (z, pairs)]
    recording.seal()
    assert recording.nbytes == 5600
    for part, want in zip(packed, (z, pairs), strict=True):
        assert _same(recording.unpack(part), want)


@pytest.mark.parametrize("lazy", ["conj", "conj_imag"])
def test_lazy_conjugates_come_back(lazy: str) -> None:
    z = torch.randn(700, dtype=torch.complex64)
    view = z.conj() if lazy == "conj" else z.conj().imag
    recording = Recording(TensorStore(), Tier.HOST, {})
    packed = recording.pack(view)
    recording.seal()
    assert torch.equal(recording.unpack(packed), view)


@pytest.mark.parametrize("role", ["stored", "source"])
def test_a_sealed_recording_has_let_go(role: str) -> None:
    tensor = torch.randn(2000)
    store = TensorStore(in_flight_bytes=0)
    recording = Recording(store, Tier.HOST, {"x": tensor} if role == "source" else {})
    recording.pack(tensor[3:])
    recording.seal()
    storage = weakref.ref(tensor.untyped_storage())
    del tensor
    gc.collect()
    assert storage() is None


def test_an_alias_is_not_stored() -> None:
    recording = Recording(TensorStore(), Tier.HOST, {})
    out, other = torch.randn(2000), torch.randn(1500)
    packed = [recording.pack(t) for t in (out, other)]
    recording.alias(out, "o")
    recording.seal()
    assert recording.nbytes == 6000
    again = out.clone()
    with recording.bound({"o": again}):
        assert recording.unpack(packed[0]).data_ptr() == again.data_ptr()
        assert torch.equal(recording.unpack(packed[1]), other)


def test_an_alias_may_be_transposed_but_no_part() -> None:
    recording = Recording(TensorStore(), Tier.HOST, {})
    out, cut = torch.randn(2, 30, 40), torch.randn(50, 40)
    packed = [recording.pack(t) for t in (out.transpose(1, 2), cut[10:])]
    for tensor in (out, cut):
        recording.alias(tensor, "o")
    recording.seal()
    assert recording.nbytes == 8000
    with recording.bound({"o": out + 1}):
        assert torch.equal(recording.unpack(packed[0]), (out + 1).transpose(1, 2))
        assert torch.equal(recording.unpack(packed[1]), cut[10:])


def test_small_storages_stay_on_the_device() -> None:
    store = TensorStore()
    recording = Recording(store, Tier.HOST, {})
    for size in (1024, 1025):
        recording.pack(torch.zeros(size))
    recording.seal()
    assert store.counts[Tier.DEVICE].held_bytes == 4096
    assert store.counts[Tier.HOST].held_bytes == 4100


def test_a_loaded_storage_is_shared_until_unbound() -> None:
    recording = Recording(TensorStore(), Tier.HOST, {})
    base = torch.randn(2000)
    packed = [recording.pack(base[:1000]), recording.pack(base[1000:])]
    recording.seal()
    with recording.bound({}):
        first, second = (recording.unpack(part) for part in packed)
        assert first.untyped_storage()._cdata == second.untyped_storage()._cdata


@pytest.mark.parametrize("tier", list(Tier))
def test_a_recorded_graph_lives_without_its_ends(tier: Tier) -> None:
    store, delivered = disk_store(), list[Tensor]()
    x = torch.randn(40, 50, dtype=torch.float64)
    weight = torch.randn(50, 60, dtype=torch.float64)

    def function(value: Tensor) -> Tensor:
        return torch.tanh(value @ weight) * value[:, :1].exp()

    recording = Recording(store, tier, {"x": x}, (weight,))
    with torch.enable_grad(), recording.recording():
        y = function(inlet(x, delivered.append))
        outlet = Outlet.of(y)
    recording.seal()
    grad, again = torch.randn_like(y), x.clone()
    gone = [weakref.ref(x), weakref.ref(y)]
    del x, y
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    with recording.bound({"x": again}):
        run_backward([outlet, None], [grad, grad], keep_graph=False)
    leaf = again.clone().requires_grad_()
    (want,) = torch.autograd.grad(function(leaf), leaf, grad)
    assert torch.allclose(delivered[0], want, rtol=1e-12)


def test_what_is_no_graph_has_no_outlet() -> None:
    assert Outlet.of(torch.ones(3)) is None
    run_backward([None], [torch.ones(3)], keep_graph=False)
