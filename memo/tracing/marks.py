"""Telling a recorder what the runtime is doing: segments, tiles that stand for others, and which
storages a layer holds for backward.

Scope: stand-ins around the runtime's own parts (`SplitLayer`, `Core`, `TensorStore`, a policy's
tiles). They pass everything on unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from offload import (
    Core,
    CoreCall,
    CoreEnd,
    CoreState,
    SplitLayer,
    TensorStore,
    Tier,
    Tile,
    TileOutput,
    Turn,
)
from offload.store import Ticket
from planner.trace.contracts import Kind, Pass, Segment
from planner.trace.recorder import Storage, Tape
from planner.trace.sampling import STANDS, Sample

T = TypeVar("T")


class Listener(Protocol):
    """Whoever is told what runs: a `Recorder`, or a `Stopwatch`."""

    tape: Tape
    segment: Segment
    direction: Pass

    def within(self, segment: Segment, direction: Pass) -> AbstractContextManager[None]:
        """What runs inside is of `segment` in `direction`."""

    def repeating(self, items: Sequence[T], times: int, *, index: int) -> Iterator[T]:
        """Iterate over `items`, of which the one at `index` stands for `times` more after it."""

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that are there before."""

    def storage_of(self, tensor: Tensor) -> Storage | None:
        """The storage of a live tensor that was seen."""


class MarkedTiles(tuple[Tile, ...]):
    """Tiles of a sequence, some in the middle left out; whoever iterates over them tells the
    recorder which one stands for those."""

    recorder: Listener
    times: int

    @classmethod
    def of(cls, recorder: Listener, tiles: Sequence[Tile], sample: Sample) -> MarkedTiles:
        marked = cls(tiles[index] for index in sample.indices)
        marked.recorder, marked.times = recorder, sample.times
        return marked

    def __iter__(self) -> Iterator[Tile]:
        tiles = [self[index] for index in range(len(self))]
        return self.recorder.repeating(tiles, self.times, index=STANDS)


@dataclass(slots=True)
class MarkedSplit:
    """A `SplitLayer` whose runs within backward are recomputation."""

    split: SplitLayer
    recorder: Listener
    on_tile: Callable[[Tile], None]

    @property
    def params(self) -> Mapping[str, Tensor]:
        return self.split.params

    @property
    def constants(self) -> Sequence[Tensor]:
        return self.split.constants

    def backward_scope(self) -> AbstractContextManager[None]:
        return self.split.backward_scope()

    def pre(self, x: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> CoreCall:
        with self._within(Segment.PRE):
            return self.split.pre(x, tile, params)

    def run(self, x: Tensor, o: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> TileOutput:
        self.on_tile(tile)
        with self._within(Segment.POST):
            return self.split.run(x, o, tile, params)

    def _within(self, segment: Segment) -> AbstractContextManager[None]:
        first = self.recorder.direction is Pass.FORWARD
        return self.recorder.within(segment, Pass.FORWARD if first else Pass.RECOMPUTE)


@dataclass(slots=True)
class MarkedCore:
    """A `Core` whose end is the end of `pre` in forward and of `post` in backward."""

    core: Core
    recorder: Listener

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, CoreState | None]:
        with self.recorder.within(Segment.CORE, Pass.FORWARD):
            result = self.core.forward(call, tier)
        self.recorder.segment = Segment.POST
        return result

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        with self.recorder.within(Segment.CORE, Pass.BACKWARD):
            result = self.core.backward(call, end)
        self.recorder.segment = Segment.PRE
        return result


@dataclass(slots=True)
class MarkingStore(TensorStore):
    """A store that says which storages are skeletal and which a tile holds, and whether backward
    wants them with `pre`.
    """

    on_put: Callable[[Tensor, Kind, bool], None] = field(default=lambda *_: None)

    def put(self, tensors: Sequence[Tensor], tier: Tier, turn: Turn = Turn.LAYER) -> Ticket:
        kind = Kind.SKELETAL if turn in (Turn.LAYER, Turn.CORE) else Kind.STORED
        for tensor in tensors:
            self.on_put(tensor, kind, turn is Turn.PRE)
        return TensorStore.put(self, tensors, tier, turn)
