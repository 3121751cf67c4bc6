"""Graphs whose tensors lie elsewhere: what autograd saves is packed into a store, and rebuilt when
backward comes.

Scope: `Recording` (saved-tensor hooks). The two ends of such a graph stand in `ends.py`. Non-scope:
when to record and where the bytes go.

Three kinds of tensors are saved by a graph:

- views of a *source* (the tile of `x`, q, k, v): rebuilt from a source of the same layout given at
  backward;
- views of a *constant* (parameters, buffers, rotary tables): referenced, for they live on anyway;
- all others: their storage is stored, once however many views of it are saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from offload.contracts import Tier, Turn, nbytes
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

    def of_source(self, base: Tensor) -> Tensor:
        return base.as_strided(self.shape, self.stride, base.storage_offset() + self.offset)

    def of_storage(self, flat: Tensor) -> Tensor:
        """From the storage as one vector of any dtype, which may lie within a larger one."""
        start = int(flat.storage_offset()) * flat.element_size() // self.dtype.itemsize
        empty = torch.empty(0, dtype=self.dtype, device=flat.device)
        storage = flat.untyped_storage()
        return empty.set_(storage, start + self.offset, self.shape, self.stride)


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
    matter. What is saved from the first use of the source `late_after` on is wanted earlier in
    backward: at `late_turn`, and what was saved before it at `turn`.
    """

    store: TensorStore
    tier: Tier
    sources: Mapping[str, Tensor]
    constants: Iterable[Tensor] = ()
    turn: Turn = Turn.LAYER
    late_after: str | None = None
    late_turn: Turn = Turn.LAYER
    _source_keys: dict[int, list[str]] = field(init=False, default_factory=dict)
    _constant_keys: frozenset[int] = field(init=False)
    _live: dict[int, Tensor] = field(init=False, default_factory=dict)
    _early: frozenset[int] | None = field(init=False, default=None)
    _views: list[_OfStorage] = field(init=False, default_factory=list)
    _places: dict[int, tuple[Ticket, int]] = field(init=False, default_factory=dict)
    _bound: Mapping[str, Tensor] | None = field(init=False, default=None)
    _loaded: dict[Ticket, tuple[Tensor, ...]] = field(init=False, default_factory=dict)

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
        if name == self.late_after and self._early is None:
            self._early = frozenset(self._live)
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

    def seal(self, *, bundled: bool = True) -> None:
        """Move what was saved into the tier and let go of the sources.

        Bundled, what is wanted at one turn moves and comes back together, which suits a graph that
        is run within `bound`; otherwise each storage comes back when it is asked for, the last one
        first.
        """
        wanted = {packed.key for packed in self._views if packed.alias is None}
        storages = {key: whole_storage(t) for key, t in self._live.items() if key in wanted}
        small = {key for key, flat in storages.items() if nbytes(flat) <= _SMALL_BYTES}
        large = storages.keys() - small
        early = large if self._early is None else large & self._early
        self._put(storages, small, Tier.DEVICE, self.turn)
        for keys in [early] if bundled else [{key} for key in reversed(storages) if key in large]:
            self._put(storages, keys, self.tier, self.turn)
        self._put(storages, large - early, self.tier, self.late_turn)
        self._live.clear()
        self._views.clear()
        self.sources, self.constants = {}, ()
        self._source_keys.clear()

    def _put(self, storages: Mapping[int, Tensor], keys: Set[int], tier: Tier, turn: Turn) -> None:
        chosen = {key: flat for key, flat in storages.items() if key in keys}
        if chosen:
            ticket = self.store.put(list(chosen.values()), tier, turn)
            self._places.update({key: (ticket, index) for index, key in enumerate(chosen)})

    @property
    def nbytes(self) -> int:
        """Bytes held, in all tiers."""
        return sum(ticket.size_bytes for ticket in {ticket for ticket, _ in self._places.values()})

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
            return packed.view.of_source(self._source(packed.name))
        if packed.alias is not None:
            name, order = packed.alias
            return self._source(name).permute(order)
        return packed.view.of_storage(self._load(packed.key))

    def _source(self, name: str) -> Tensor:
        assert self._bound is not None, "a recorded graph ran outside `bound`"
        return self._bound[name]

    def _load(self, key: int) -> Tensor:
        ticket, index = self._places[key]
        tensors = self._loaded.get(ticket) or self.store.get(ticket)
        if self._bound is not None:
            self._loaded[ticket] = tensors
        return tensors[index]


def whole_storage(tensor: Tensor) -> Tensor:
    """All of a tensor's storage as one vector, which knows of changes in place."""
    storage = tensor.untyped_storage()
    count, rest = divmod(storage.nbytes(), tensor.element_size())
    if not rest:
        return tensor.detach().as_strided((count,), (1,), 0)
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)


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
