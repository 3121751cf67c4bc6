"""Graphs whose tensors lie elsewhere: what autograd saves is packed into a store, and rebuilt when
backward comes.

Scope: `Recording` (saved-tensor hooks) and the two ends of such a graph, `inlet` and `outlet`,
which let a graph live on without holding the tensors that went in or came out. Non-scope: when to
record and where the bytes go.

Three kinds of tensors are saved by a graph:

- views of a *source* (the tile of `x`, q, k, v): rebuilt from a source of the same layout given at
  backward;
- views of a *constant* (parameters, buffers, rotary tables): referenced, for they live on anyway;
- all others: their storage is stored, once however many views of it are saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor
from torch.autograd.graph import Node, saved_tensors_hooks

from offload.contracts import Tier
from offload.store import TensorStore, Ticket

_SMALL_BYTES = 4096
"""Storages up to this size (scalars, seeds) stay on the device: moving one costs more than it
frees.
"""


@dataclass(frozen=True, slots=True)
class _View:
    """How a tensor lies in its storage. `offset` counts elements, relative to a source's own
    offset.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor, base_offset: int = 0) -> _View:
        offset = int(tensor.storage_offset()) - base_offset
        return cls(tensor.shape, tensor.stride(), offset, tensor.dtype)

    def restore(self, base: Tensor) -> Tensor:
        return base.as_strided(self.shape, self.stride, base.storage_offset() + self.offset)


@dataclass(frozen=True, slots=True)
class _OfSource:
    name: str
    view: _View


@dataclass(slots=True)
class _OfStorage:
    """A view of a storage that this recording holds; `alias` (a source and an order
    of its dims) replaces it when the same values
    live on elsewhere.
    """

    key: int
    view: _View
    alias: tuple[str, tuple[int, ...]] | None = None


Packed = Tensor | _OfSource | _OfStorage
"""What stands for a saved tensor: itself, or where to find it again."""


@dataclass(slots=True)
class Recording:
    """What one run's graph saved.

    `sources` are known tensors by name; until `seal` they must be alive, afterwards only the names
    matter.
    """

    store: TensorStore
    tier: Tier
    sources: Mapping[str, Tensor]
    constants: Iterable[Tensor] = ()
    _source_keys: dict[int, list[str]] = field(init=False, default_factory=dict)
    _constant_keys: frozenset[int] = field(init=False)
    _live: dict[int, Tensor] = field(init=False, default_factory=dict)
    _views: list[_OfStorage] = field(init=False, default_factory=list)
    _tickets: dict[int, Ticket] = field(init=False, default_factory=dict)
    _bound: Mapping[str, Tensor] | None = field(init=False, default=None)
    _loaded: dict[int, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, source in self.sources.items():
            self._source_keys.setdefault(_key(source), []).append(name)
        self._constant_keys = frozenset(_key(tensor) for tensor in self.constants)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Run what is inside with this recording's hooks; close with `seal`."""
        with saved_tensors_hooks(self.pack, self.unpack):
            yield

    def pack(self, tensor: Tensor) -> Packed:
        # Conjugation and negation may be lazy marks, which strides and offsets do not carry.
        tensor = tensor.resolve_conj().resolve_neg()
        key = _key(tensor)
        if key in self._source_keys:
            packed_source = self._pack_source(tensor, self._source_keys[key])
            if packed_source is not None:
                return packed_source
        if key in self._constant_keys:
            return tensor
        self._live.setdefault(key, tensor)
        packed = _OfStorage(key, _View.of(tensor))
        self._views.append(packed)
        return packed

    def _pack_source(self, tensor: Tensor, names: list[str]) -> _OfSource | None:
        # Sources may share a storage (a fused qkv projection, a batch's x): the one that starts
        # last before the view holds it. A view in another dtype (complex) cannot be restored from
        # the source by strides alone.
        before = [n for n in names if self.sources[n].storage_offset() <= tensor.storage_offset()]
        if not before or self.sources[before[0]].dtype != tensor.dtype:
            return None
        name = max(before, key=lambda n: self.sources[n].storage_offset())
        return _OfSource(name, _View.of(tensor, int(self.sources[name].storage_offset())))

    def hold(self, tensor: Tensor) -> Packed:
        """Hold a tensor that autograd did not save, beside those that it did; give the result to
        `unpack`.
        """
        return self.pack(tensor.detach())

    def alias(self, tensor: Tensor, name: str) -> None:
        """Say that `tensor`, as saved by the graph, will be the source `name` in backward: it
        need not be stored.
        """
        for packed in self._views:
            if packed.key == _key(tensor):
                order = _permutation(tensor, packed.view)
                packed.alias = None if order is None else (name, order)

    def seal(self) -> None:
        """Move what was saved into the tier and let go of the sources."""
        wanted = {packed.key for packed in self._views if packed.alias is None}
        for key, tensor in self._live.items():
            if key in wanted:
                self._tickets[key] = self._put(tensor)
        self._live.clear()
        self._views.clear()
        self.sources, self.constants = {}, ()
        self._source_keys.clear()

    def _put(self, tensor: Tensor) -> Ticket:
        storage = tensor.untyped_storage()
        flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        small = storage.nbytes() <= _SMALL_BYTES
        return self.store.put(flat, Tier.DEVICE if small else self.tier)

    @property
    def nbytes(self) -> int:
        """Bytes held, in all tiers."""
        return sum(ticket.held.numel() for ticket in self._tickets.values())

    @contextmanager
    def bound(self, sources: Mapping[str, Tensor]) -> Iterator[None]:
        """Run backward inside: `sources` stand for those of the recording; loaded storages are
        shared until the end.

        A recording without sources or aliases needs none of this; each view then loads its storage.
        """
        self._bound = sources
        try:
            yield
        finally:
            self._bound = None
            self._loaded.clear()

    def unpack(self, packed: Packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if isinstance(packed, _OfSource):
            return packed.view.restore(self._source(packed.name))
        if packed.alias is not None:
            name, order = packed.alias
            return self._source(name).permute(order)
        view = packed.view
        flat = self._load(packed.key)
        storage = flat.untyped_storage()
        empty = torch.empty(0, dtype=view.dtype, device=flat.device)
        return empty.set_(storage, view.offset, view.shape, view.stride)

    def _source(self, name: str) -> Tensor:
        assert self._bound is not None, "a recorded graph ran outside `bound`"
        return self._bound[name]

    def _load(self, key: int) -> Tensor:
        flat = self._loaded.get(key)
        if flat is None:
            flat = self.store.get(self._tickets[key])
            if self._bound is not None:
                self._loaded[key] = flat
        return flat


def _permutation(tensor: Tensor, view: _View) -> tuple[int, ...] | None:
    """The order of dims in which `tensor` is the view; kernels save what they return transposed."""
    dims = range(tensor.ndim)
    if tensor.ndim != len(view.shape) or tensor.storage_offset() != view.offset:
        return None
    for order in permutations(dims):
        if all(
            (tensor.shape[d], tensor.stride(d)) == (n, s)
            for d, n, s in zip(order, view.shape, view.stride, strict=True)
        ):
            return order
    return None


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Inlet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, anchor: Tensor, value: Tensor, sink: Sink
    ) -> Tensor:
        ctx.sink = sink  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grads: Tensor
    ) -> tuple[None, None, None]:
        ctx.sink(grads[0])  # type: ignore[attr-defined]
        return None, None, None


class _Outlet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, value: Tensor, slot: list[Tensor]
    ) -> Tensor:
        ctx.slot = slot  # type: ignore[attr-defined]
        return value.new_zeros(())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.slot.pop(), None  # type: ignore[attr-defined]


Sink = Callable[[Tensor], None]


def inlet(value: Tensor, sink: Sink) -> Tensor:
    """`value` as the start of a graph: its gradient is given to `sink`, and the graph does not hold
    its storage.

    (A leaf's AccumulateGrad node would.)
    """
    anchor = torch.zeros((), requires_grad=True, device=value.device)
    result: Tensor = _Inlet.apply(anchor, value, sink)  # type: ignore[no-untyped-call]
    return result


def is_inlet(node: Node) -> bool:
    """Whether a graph's node is an inlet's, which holds no tensors."""
    return isinstance(node, _Inlet._backward_cls)


@dataclass(slots=True)
class Outlet:
    """The end of a graph, which can be run backward later without its output being held.

    A handle of no size stands in for the output; `backward` accepts such handles in every torch
    that we support, while gradient edges as roots are newer.
    """

    handle: Tensor
    slot: list[Tensor]

    @classmethod
    def of(cls, value: Tensor) -> Outlet | None:
        """None when `value` is not part of a graph."""
        if not value.requires_grad:
            return None
        slot: list[Tensor] = []
        return cls(_Outlet.apply(value, slot), slot)  # type: ignore[no-untyped-call]


def run_backward(
    outlets: Iterable[Outlet | None], grads: Iterable[Tensor | None], *, keep_graph: bool
) -> None:
    """Run the graphs behind `outlets` backward; those without an outlet or a gradient take no
    part.
    """
    roots = []
    for outlet, grad in zip(outlets, grads, strict=True):
        if outlet is not None and grad is not None:
            outlet.slot[:] = [grad]
            roots.append(outlet.handle)
    if roots:
        ones = [torch.ones_like(root) for root in roots]
        torch.autograd.backward(roots, ones, retain_graph=keep_graph)
