"""What a traced step is made of: operations, allocations, and the parts of a step that have both.

Scope: plain data. Recording is `recorder.py`'s business, sums are `live.py`'s, JSON `store.py`'s.

A step is cut into *blocks* (forward and backward of the embedding, of one layer of each class, of
the head with the loss). Within a block time is counted in operations: what is born at b and freed
at f is there while operations b, ..., f - 1 run. Tiles that repeat are traced a few times; a
`Repeat` says which operations stand for how many tiles more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias


class Kind(StrEnum):
    """What an allocation is. Skeletal: a layer's input and attention's output (MEMO's term, SIGMOD
    2025, section 4.1), held from forward to backward; exchanged: what is held beside o, of what
    ranks exchanged, for attention's backward alone; stored: what a tile that is not recomputed
    holds beside them; transient: born and freed in one block.
    """

    SKELETAL = "skeletal"
    EXCHANGED = "exchanged"
    STORED = "stored"
    TRANSIENT = "transient"
    PARAMETER = "parameter"
    GRADIENT = "gradient"
    OPTIMIZER = "optimizer"
    INPUT = "input"
    OUTPUT = "output"


class Segment(StrEnum):
    """Which part of the model an operation is of. `WHOLE` is a layer that cannot be cut."""

    EMBEDDING = "embedding"
    PRE = "pre"
    CORE = "core"
    POST = "post"
    WHOLE = "whole"
    HEAD = "head"


class Pass(StrEnum):
    """In which direction. RECOMPUTE: forward again, within backward."""

    FORWARD = "forward"
    RECOMPUTE = "recompute"
    BACKWARD = "backward"


Phase: TypeAlias = tuple[str, Segment, Pass]
"""A part of a step (a layer's class, or one of its ends), a segment of it, and a direction."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One storage in one block. `born` -1: there when the block begins; `freed` None: there when it
    ends. An id is the same storage in all blocks of a step.
    """

    id: int
    size_bytes: int
    born: int
    freed: int | None
    segment: Segment
    kind: Kind

    @property
    def is_inner(self) -> bool:
        """Whether it lives and dies within the block."""
        return self.born >= 0 and self.freed is not None


@dataclass(frozen=True, slots=True)
class OperationCost:
    """One operation: floating-point operations (a multiply and an add are two), and bytes read and
    written by a kernel that reads each input and writes each output once.
    """

    index: int
    name: str
    flops: int
    bytes: int
    segment: Segment
    direction: Pass


@dataclass(frozen=True, slots=True)
class Repeat:
    """Operations [start, stop) are a tile's, and are followed by `times` more like them that were
    not traced.
    """

    start: int
    stop: int
    times: int


@dataclass(frozen=True, slots=True)
class Block:
    """Operations of one part of a step in order, and the storages that live in it."""

    operations: tuple[OperationCost, ...]
    allocations: tuple[Allocation, ...]
    repeats: tuple[Repeat, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """Of all operations of a segment and direction, repeats included."""

    flops: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class PartTrace:
    """Forward and backward of one part of a step."""

    forward: Block
    backward: Block


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTrace:
    """One layer of a class, tile by tile; `reason` says why not where it runs whole, as one tile.

    `recomputed` is the layer with every tile's placement RECOMPUTE, `kept` with KEEP.
    `stored_bytes` is what one full tile holds if it is kept (or on the host, or on the SSD), of
    which `stored_pre_bytes` are wanted by `pre`'s backward alone; a whole layer that is kept holds
    so many more than x, whether or not x is among them;
    `x_bytes` and `o_bytes` (attention's output with its log-sum-exp, and what else is held where it
    is) are the layer's skeletal bytes; `o_core_bytes` of the latter are wanted by the core's
    backward alone.
    """

    name: str
    tokens: int
    tile_tokens: int
    tiles: int
    x_bytes: int
    o_bytes: int
    stored_bytes: int
    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    recomputed: PartTrace
    kept: PartTrace
    reason: str | None = None
    stored_pre_bytes: int = 0
    o_core_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTrace:
    """A training step of one device's share: `layers` has one entry per class, `order` the class of
    every layer. `base_bytes` are parameters, buffers and inputs, there throughout.
    """

    model: str
    tokens: int
    batch: int
    dtype: str
    device: str
    parameters: int
    trainable: int
    parameter_bytes: int
    base_bytes: int
    embedding: PartTrace
    layers: tuple[LayerTrace, ...]
    order: tuple[str, ...]
    head: PartTrace
    notes: tuple[str, ...] = field(default=())
