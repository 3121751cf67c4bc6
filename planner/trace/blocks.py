"""Cutting a tape into blocks: which operations and storages are of which part of a step.

Scope: `Cut`s of a tape into ranges, and what each storage is within each. A storage belongs to the
part that makes it, and to the one that frees it if that is the same part's backward or it is handed
from one to the other. What is made before the first layer and used by all (rotary tables) is freed
when the embedding's backward begins: as if all layers were over, since one layer stands for many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.trace.contracts import Allocation, Block, Kind, PartTrace, Pass, Repeat
from planner.trace.recorder import Storage, Tape

EMBEDDING, HEAD = "embedding", "head"

KindOf = Callable[[Storage], Kind | None]
"""What a storage is in a block; None: none of it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """From operation `start` on, the tape is of `part`, until the next cut."""

    part: str
    direction: Pass
    start: int


@dataclass(frozen=True, slots=True)
class Ends:
    """Storages by number: what goes into each layer and comes out of it, what the runtime marked,
    and the parameters' gradients after the step.
    """

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    marked: Mapping[int, Kind]
    gradients: frozenset[int]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A tape with its cuts, which must begin with the embedding's forward and have each part and
    direction at most once.
    """

    tape: Tape
    cuts: Sequence[Cut]
    ends: Ends

    def part(self, name: str) -> PartTrace:
        """Forward and backward of a part; the part of a frozen embedding has an empty backward."""
        if name == EMBEDDING:
            kinds: tuple[KindOf, KindOf] = self._embedding_forward, self._embedding_backward
        else:
            kinds = self._forward_of(name), self._backward_of(name)
        return PartTrace(
            self._block(self._range(name, Pass.FORWARD), kinds[0]),
            self._block(self._range(name, Pass.BACKWARD), kinds[1]),
        )

    @property
    def cached_bytes(self) -> int:
        """Of storages made on the way that outlive the step and are no gradients: made once,
        however many layers there are (masks of attention's blocks).
        """
        return sum(s.size_bytes for s in self.tape.storages if self._is_cached(s))

    def _is_cached(self, storage: Storage) -> bool:
        outlives = storage.born >= 0 and storage.freed is None
        return outlives and storage.id not in self.ends.gradients

    def _range(self, part: str, direction: Pass) -> range:
        stops = [*(cut.start for cut in self.cuts[1:]), self.tape.now]
        for cut, stop in zip(self.cuts, stops, strict=True):
            if (cut.part, cut.direction) == (part, direction):
                return range(cut.start, stop)
        return range(self.tape.now, self.tape.now)

    def _block(self, span: range, kind_of: KindOf) -> Block:
        operations = self.tape.operations[span.start : span.stop]
        found = (
            (s, kind_of(s))
            for s in self.tape.storages
            if s.born < span.stop and not self._is_cached(s)
        )
        return Block(
            tuple(replace(op, index=op.index - span.start) for op in operations),
            tuple(_allocation(s, kind, span) for s, kind in found if kind is not None),
            tuple(
                Repeat(r.start - span.start, r.stop - span.start, r.times)
                for r in self.tape.repeats
                if span.start <= r.start < span.stop
            ),
        )

    # ---- what a storage is ----

    def _forward_of(self, part: str) -> KindOf:
        span = self._range(part, Pass.FORWARD)

        def kind(storage: Storage) -> Kind | None:
            if storage.id == self.ends.inputs.get(part):
                return Kind.SKELETAL
            if part == HEAD and self._is_shared(storage) and _is_freed_in(storage, span):
                return Kind.INPUT
            if storage.born not in span:
                return None
            return self._made_in_forward(storage, part, span)

        return kind

    def _made_in_forward(self, storage: Storage, part: str, span: range) -> Kind:
        if _is_freed_in(storage, span):
            return Kind.TRANSIENT
        if storage.id == self.ends.outputs.get(part):
            return Kind.OUTPUT
        if storage.id in self.ends.gradients:  # the loss makes the head's with its tiles
            return Kind.GRADIENT
        return self.ends.marked.get(storage.id, Kind.STORED)

    def _backward_of(self, part: str) -> KindOf:
        span, forward = self._range(part, Pass.BACKWARD), self._range(part, Pass.FORWARD)
        head = self._range(HEAD, Pass.FORWARD)

        def kind(storage: Storage) -> Kind | None:
            if storage.born in span:
                return self._made_in_backward(storage, span)
            if not _is_freed_in(storage, span):
                return None
            if storage.id == self._entering(part):
                return Kind.SKELETAL
            if storage.born in forward and storage.id != self.ends.outputs.get(part):
                return self.ends.marked.get(storage.id, Kind.STORED)
            return Kind.INPUT if storage.born >= head.start else None

        return kind

    def _entering(self, part: str) -> int | None:
        """The storage of a part's input. The head's is the output of the last layer traced."""
        if part == HEAD:
            return list(self.ends.outputs.values())[-1]
        return self.ends.inputs.get(part)

    def _made_in_backward(self, storage: Storage, span: range) -> Kind:
        if _is_freed_in(storage, span):
            return Kind.TRANSIENT
        return Kind.GRADIENT if storage.id in self.ends.gradients else Kind.OUTPUT

    def _is_shared(self, storage: Storage) -> bool:
        """Whether it is made before the layers, and is no layer's input."""
        first = self._range(EMBEDDING, Pass.FORWARD)
        return storage.born in first and storage.id not in self.ends.inputs.values()

    def _embedding_forward(self, storage: Storage) -> Kind | None:
        span = self._range(EMBEDDING, Pass.FORWARD)
        if storage.born not in span:
            return None
        if _is_freed_in(storage, span):
            return Kind.TRANSIENT
        return Kind.INPUT if self._is_shared(storage) else Kind.OUTPUT

    def _embedding_backward(self, storage: Storage) -> Kind | None:
        span, head = self._range(EMBEDDING, Pass.BACKWARD), self._range(HEAD, Pass.FORWARD)
        if storage.born in span:
            return self._made_in_backward(storage, span)
        if self._is_shared(storage):
            return Kind.INPUT if storage.freed is not None and storage.freed > head.stop else None
        return Kind.INPUT if storage.born >= head.start and _is_freed_in(storage, span) else None


def _is_freed_in(storage: Storage, span: range) -> bool:
    return storage.freed is not None and span.start < storage.freed <= span.stop


def _allocation(storage: Storage, kind: Kind, span: range) -> Allocation:
    born = storage.born - span.start if storage.born in span else -1
    freed = storage.freed
    if freed is not None and freed > span.stop:
        freed = None
    return Allocation(
        storage.id,
        storage.size_bytes,
        born,
        None if freed is None else max(freed - span.start, 0),
        storage.segment,
        kind,
    )
