"""What the runtime's parts say to each other: placements, tiles, and the protocols of a split
layer.

Scope: plain data and protocols, no algorithm. `offload` knows torch and nothing of transformers:
how a layer is cut at attention is somebody else's business, told through `SplitLayer` and `Core`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class MemoError(RuntimeError):
    """What memo cannot do as asked; the message says what happened and what to do. All of memo's
    errors are of it, but for bad argument values, which are `ValueError`.
    """


class TransferError(MemoError):
    """A copy between tiers that failed; its cause is chained. What it should have brought is never
    handed out.
    """


class SpillError(TransferError):
    """What a disk can't do as asked: the message names the directory, the operation, the errno
    (None: not the system's) and what to do.
    """

    def __init__(self, message: str, *, directory: Path, operation: str, errno: int | None) -> None:
        super().__init__(message)
        self.directory = directory
        self.operation = operation
        self.errno = errno


INPLACE = (
    "a tensor that backward needs was modified by an inplace operation after the layer's forward; "
    "modify a clone instead"
)

SECOND_BACKWARD = (
    "backward ran a second time through a wrapped model, whose tensors the first one freed: add "
    "the losses and run backward once, or run the forward again"
)


class Tier(StrEnum):
    """Where stored bytes lie."""

    DEVICE = "device"
    HOST = "host"
    SSD = "ssd"


class Lane(StrEnum):
    """Where transfers queue, each beside the others and beside compute."""

    D2H = "d2h"
    H2D = "h2d"
    SSD_WRITE = "ssd write"
    SSD_READ = "ssd read"


class Placement(StrEnum):
    """Where a tile's rebuildable tensors are between forward and backward."""

    KEEP = "keep"
    HOST = "host"
    SSD = "ssd"
    RECOMPUTE = "recompute"

    @property
    def tier(self) -> Tier | None:
        """The tier that holds the tensors; None when nothing is held."""
        return {
            Placement.KEEP: Tier.DEVICE,
            Placement.HOST: Tier.HOST,
            Placement.SSD: Tier.SSD,
        }.get(self)


class Turn(IntEnum):
    """When, in a layer's backward, tensors are wanted: the order in which they are brought back."""

    LAYER = 0
    POST = 1
    CORE = 2
    PRE = 3


@dataclass(frozen=True, slots=True)
class Tile:
    """The tokens `[start, stop)` of every sequence of the batch."""

    index: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(kw_only=True, slots=True)
class CoreCall:
    """What a layer hands to attention: for one tile as traced, for the whole sequence once
    assembled.

    `heads` are q, k, v as [batch, heads, tokens, head_dim]; `extras` are tensors that are no
    function of tokens but may take a gradient (attention sinks); `options` is whatever else the
    core needs and is the same for all tiles. With `is_own` nobody else holds the
    memory of `heads`, and the core's backward may write gradients over them.
    """

    heads: tuple[Tensor, ...]
    extras: tuple[Tensor, ...] = ()
    options: object = None
    is_own: bool = False


@dataclass(kw_only=True, slots=True)
class TileOutput:
    """One tile run to its end: `y` as [batch, tokens, hidden]; `aux` (router logits, ...) as
    [batch, tokens, ...].
    """

    y: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)
    call: CoreCall


class SplitLayer(Protocol):
    """A layer whose forward can be stopped at attention, or answered there and run to the end.

    Both methods run under the grad mode that they are called in; `params` replaces the layer's own
    parameters.
    """

    @property
    def params(self) -> Mapping[str, Tensor]:
        """The layer's parameters, in a fixed order."""

    @property
    def constants(self) -> Sequence[Tensor]:
        """Tensors that outlive the call (buffers, rotary tables): referenced when autograd saves
        them, never moved.
        """

    def backward_scope(self) -> AbstractContextManager[None]:
        """Around a layer's whole backward, in which `pre` and `run` are called again."""

    def pre(self, x: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> CoreCall:
        """Run up to attention. `x`: [batch, tile tokens, hidden]."""

    def run(self, x: Tensor, o: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> TileOutput:
        """Run to the end with `o` ([batch, tile tokens, heads, head_dim]) as attention's answer."""


class CoreState(Protocol):
    """What attention's backward needs beside q, k, v and o (the log-sum-exp above all)."""

    @property
    def nbytes(self) -> int: ...


@dataclass(kw_only=True, slots=True)
class CoreEnd:
    """Attention's end as its backward gets it: `o` and its gradient as [batch, tokens, heads,
    head_dim], and the state that forward left. In a layer that runs tile by tile nobody else holds
    either: a core that deletes the attribute frees it.
    """

    o: Tensor
    grad_o: Tensor
    state: CoreState


class Core(Protocol):
    """Attention over the whole sequence, its forward run once, its inputs rebuilt for backward."""

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, CoreState | None]:
        """Return `o` as [batch, tokens, heads, head_dim] and the state, held in `tier`; None: no
        backward will come.
        """

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Return gradients for `call.heads` and for `call.extras`. Uses `end` up."""


class CallJoiner(Protocol):
    """Makes the core's call of those of a layer's tiles, in one pass over the tiles."""

    def write(self, tile: Tile, call: CoreCall) -> None:
        """Take a tile's call; tiles come in order."""

    def value(self) -> CoreCall:
        """The core's call; every tile has been written. It is asked for once, wanted or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How a layer is run: its tiles, where each one's tensors go, and where x goes, and o with its
    log-sum-exp.

    `hold_pre`: the graphs of rebuilt tiles' `pre` are held while the core's backward runs, instead
    of running `pre` again; about 6 hidden sizes a token of one layer, against a tenth of a layer's
    token-wise time.
    """

    tiles: tuple[Tile, ...]
    placements: tuple[Placement, ...]
    x: Tier
    o: Tier
    hold_pre: bool = False

    def __post_init__(self) -> None:
        assert len(self.tiles) == len(self.placements)


def nbytes(tensor: Tensor) -> int:
    """Bytes of the tensor's elements (its storage may be larger)."""
    return tensor.numel() * tensor.element_size()


GRADIENT_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""Parameter dtypes whose gradients are accumulated over tiles in a wider one."""
