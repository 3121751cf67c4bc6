"""A layer's forward: `pre` of every tile, `core` once, then every tile run to its end.

Scope: the order of forward, and `LayerMemory`, which is all that it leaves for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offload.contracts import (
    CallJoiner,
    Core,
    CoreCall,
    CoreState,
    Policy,
    SplitLayer,
    Tier,
    Tile,
    Turn,
    nbytes,
)
from offload.counts import LayerCount
from offload.ends import Sink
from offload.gradients import ParameterGradients
from offload.graphs import TileGraph, trace
from offload.recording import Recording
from offload.replay import Replay
from offload.store import TensorStore, Ticket
from offload.tiles import Joined, tile_of


@dataclass(slots=True)
class TileGradients:
    """Where tiles' graphs deliver the gradients of x and o; filled during backward only.

    Graphs refer to it from nodes that Python's garbage collector cannot see into, so it must never
    refer back to them.
    """

    x: Joined | None = None
    o: Joined | None = None

    def x_sink(self, tile: Tile) -> Sink:
        return lambda grad: self._add(self.x, tile, grad)

    def o_sink(self, tile: Tile) -> Sink:
        return lambda grad: self._add(self.o, tile, grad)

    @staticmethod
    def _add(joined: Joined | None, tile: Tile, grad: Tensor) -> None:
        assert joined is not None, "a tile's graph ran outside its layer's backward"
        joined.add(tile, grad)


@dataclass(slots=True)
class LayerMemory:
    """What a layer's forward leaves for its backward: the skeletal tensors, and the graphs of tiles
    that are held."""

    x_needs_grad: bool
    x: Ticket | None = None
    o: Ticket | None = None
    core_state: CoreState | None = None
    graphs: dict[int, TileGraph] = field(default_factory=dict)
    parameters: ParameterGradients | None = None
    gradients: TileGradients = field(default_factory=TileGradients)

    def x_sink(self, tile: Tile) -> Sink | None:
        """Where a tile's gradient of x goes; None when x takes none."""
        return self.gradients.x_sink(tile) if self.x_needs_grad else None


@dataclass(kw_only=True, slots=True)
class TiledForward:
    """One call of one layer: its parts, and how to run it. `name` is shown in traces; `join` makes
    what joins tiles' calls, once per pass over the tiles (None: a `JoinedCall`).
    """

    split: SplitLayer
    core: Core
    policy: Policy
    store: TensorStore
    count: LayerCount
    replay: Replay
    name: str = "layer"
    join: Callable[[], CallJoiner] | None = None

    @property
    def total_tokens(self) -> int:
        return self.policy.tiles[-1].stop

    def joined(self) -> CallJoiner:
        """What joins the calls of one pass over the tiles."""
        return JoinedCall(self.total_tokens) if self.join is None else self.join()

    def run(self, x: Tensor, memory: LayerMemory | None) -> dict[str, Tensor]:
        """Run on `x` ([batch, tokens, hidden]); without a memory nothing is kept. Returns y
        under "", aux by name.
        """
        with self.store.marked(f"{self.name} forward", x.device):
            return self._run(x.detach(), memory)

    def _run(self, x: Tensor, memory: LayerMemory | None) -> dict[str, Tensor]:
        with torch.no_grad():
            # Copies begin as soon as a tensor is done, in the order in which backward wants them.
            ticket = None if memory is None else self.store.put([x], self.policy.x)
            frozen = {name: param.detach() for name, param in self.split.params.items()}
            call = self._pre(x, frozen)
            o, state = self.core.forward(call, None if memory is None else self.policy.o)
            del call
            if memory is not None:
                memory.x, memory.o = ticket, self.store.put([o], self.policy.o)
                memory.core_state = state
                self._count(x, o, state)
            outputs = self._post(x, o, frozen, memory)
            self.replay.advance()
        self.store.close_group()
        return outputs

    def _count(self, x: Tensor, o: Tensor, state: CoreState | None) -> None:
        self.count.calls += 1
        self.count.tiles.update(self.policy.placements)
        self.count.skeletal_bytes[self.policy.x] += nbytes(x)
        self.count.skeletal_bytes[self.policy.o] += nbytes(o) + (state.nbytes if state else 0)

    def _pre(self, x: Tensor, params: Mapping[str, Tensor]) -> CoreCall:
        joined = self.joined()
        for tile in self.policy.tiles:
            with self.replay.first(tile):
                joined.write(tile, self.split.pre(tile_of(x, tile), tile, params))
        return joined.value()

    def _post(
        self, x: Tensor, o: Tensor, params: Mapping[str, Tensor], memory: LayerMemory | None
    ) -> dict[str, Tensor]:
        joined: dict[str, Joined] = {}
        for tile, placement in zip(self.policy.tiles, self.policy.placements, strict=True):
            with self.replay.first(tile):
                if memory is None or placement.tier is None:
                    out = self.split.run(tile_of(x, tile), tile_of(o, tile), tile, params)
                    parts = {"": out.y, **out.aux}
                else:
                    parts = self._record(x, o, tile, placement.tier, memory)
            for name, part in parts.items():
                joined.setdefault(name, Joined(self.total_tokens)).write(tile, part)
        return {name: whole.value() for name, whole in joined.items()}

    def _record(
        self, x: Tensor, o: Tensor, tile: Tile, tier: Tier, memory: LayerMemory
    ) -> dict[str, Tensor]:
        # Held graphs end in these leaves, so backward must go on with them.
        memory.parameters = memory.parameters or ParameterGradients(self.split.params)
        leaves = memory.parameters.leaves
        x_tile, o_tile = tile_of(x, tile), tile_of(o, tile)
        constants = (*self.split.constants, *leaves.values())
        recording = Recording(
            self.store,
            tier,
            {"x": x_tile, "o": o_tile},
            constants,
            turn=Turn.PRE,
            late_after="o",
            late_turn=Turn.POST,
        )
        with recording.recording():
            graph, parts = trace(
                self.split,
                tile,
                leaves,
                (x_tile, memory.x_sink(tile)),
                (o_tile, memory.gradients.o_sink(tile)),
            )
        graph.hold(recording)
        self.count.stored_bytes[tier] += recording.nbytes
        memory.graphs[tile.index] = graph
        return parts


class JoinedCall:
    """The core's call for the whole sequence, joined from those of tiles: a `CallJoiner`."""

    def __init__(self, total_tokens: int) -> None:
        self._total_tokens = total_tokens
        self._heads: list[Joined] = []
        self._first: CoreCall | None = None

    def write(self, tile: Tile, call: CoreCall) -> None:
        if self._first is None:
            self._first = CoreCall(heads=(), extras=call.extras, options=call.options)
            self._heads = [Joined(self._total_tokens, dim=2) for _ in call.heads]
        for joined, part in zip(self._heads, call.heads, strict=True):
            joined.write(tile, part)

    def value(self) -> CoreCall:
        assert self._first is not None, "no tile was written"
        return CoreCall(
            heads=tuple(joined.value() for joined in self._heads),
            extras=self._first.extras,
            options=self._first.options,
            is_own=all(joined.is_copy for joined in self._heads),
        )
