"""A layer's backward: every tile from its end, `core`'s backward, then every tile's `pre`.

Scope: the order of backward. A tile whose graph was not held is run again here. Its `pre` is then
either held until the core's backward is over, or run once more after it (`Policy.hold_pre`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from offload.contracts import CoreCall, CoreEnd, SplitLayer, Tile
from offload.forward import LayerMemory, TiledForward
from offload.gradients import ParameterGradients
from offload.graphs import TileGraph, trace, trace_pre
from offload.tiles import Joined, tile_of


@dataclass(slots=True)
class TiledBackward:
    """The backward of one layer call. It uses `memory` up."""

    layer: TiledForward
    memory: LayerMemory

    @property
    def _split(self) -> SplitLayer:
        return self.layer.split

    @property
    def _tiles(self) -> tuple[Tile, ...]:
        return self.layer.policy.tiles

    def run(self, grads: Sequence[Tensor]) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        """From gradients of y and of the auxiliary outputs to those of x and of the parameters,
        in their order.
        """
        memory, total = self.memory, self.layer.total_tokens
        memory.parameters = memory.parameters or ParameterGradients(self._split.params)
        grad_x, gradients = Joined(total), memory.gradients
        gradients.x, gradients.o = grad_x, Joined(total)
        mark = self.layer.store.marked(f"{self.layer.name} backward", grads[0].device)
        with mark, self.layer.replay.restored(), self._split.backward_scope():
            self._run(grads)
        gradients.x = None
        self.layer.store.sweep()
        return grad_x.value_or_none(self._tiles), memory.parameters.collect()

    def _run(self, grads: Sequence[Tensor]) -> None:
        store, memory = self.layer.store, self.memory
        assert memory.x is not None
        assert memory.o is not None
        assert memory.core_state is not None
        (x,), (o,), state = store.get(memory.x), store.get(memory.o), memory.core_state
        memory.x = memory.o = memory.core_state = None
        call = self._post(x, o, grads)
        assert memory.gradients.o is not None
        grad_o, memory.gradients.o = memory.gradients.o.value_or_none(self._tiles), None
        if call is None or grad_o is None:
            return
        end = CoreEnd(o=o, grad_o=grad_o, state=state)
        del grad_o, state, o
        call_grads = self.layer.core.backward(call, end)
        del call, end
        self._pre(x, *call_grads)

    def _post(self, x: Tensor, o: Tensor, grads: Sequence[Tensor]) -> CoreCall | None:
        """Every tile from its end; returns the rebuilt q, k, v, or None when no gradient goes
        through the core.
        """
        joined = self.layer.joined()
        reaches_core = False
        for tile in self._tiles:
            sources = {"x": tile_of(x, tile), "o": tile_of(o, tile)}
            graph = self.memory.graphs.get(tile.index) or self._trace(tile, sources)
            if self.layer.policy.hold_pre and graph.is_apart:
                self.memory.graphs[tile.index] = graph
            with graph.bound(sources):
                graph.backward_outputs([grad.narrow(1, tile.start, tile.tokens) for grad in grads])
                joined.write(tile, graph.release_call())
            self.layer.store.sweep()
            reaches_core = reaches_core or graph.reaches_core
        call = joined.value()  # a joiner may have to end what it has begun
        return call if reaches_core else None

    def _trace(self, tile: Tile, sources: dict[str, Tensor]) -> TileGraph:
        x, o = (
            (sources["x"], self.memory.x_sink(tile)),
            (sources["o"], self.memory.gradients.o_sink(tile)),
        )
        with self.layer.replay.again(tile):
            return trace(self._split, tile, self._leaves, x, o)[0]

    def _pre(
        self, x: Tensor, head_grads: tuple[Tensor, ...], extra_grads: tuple[Tensor | None, ...]
    ) -> None:
        """Every tile's `pre`; the extras are no function of tokens, so only the first tile
        carries their gradients.
        """
        for tile in self._tiles:
            x_tile = tile_of(x, tile)
            graph = self.memory.graphs.pop(tile.index, None) or self._trace_pre(tile, x_tile)
            heads = [grad.narrow(2, tile.start, tile.tokens) for grad in head_grads]
            extras = extra_grads if tile.index == 0 else (None,) * len(extra_grads)
            with graph.bound({"x": x_tile}):
                graph.backward_call([*heads, *extras])
            self.layer.store.sweep()

    def _trace_pre(self, tile: Tile, x_tile: Tensor) -> TileGraph:
        with self.layer.replay.again(tile):
            return trace_pre(self._split, tile, self._leaves, (x_tile, self.memory.x_sink(tile)))

    @property
    def _leaves(self) -> dict[str, Tensor]:
        assert self.memory.parameters is not None
        return self.memory.parameters.leaves
