"""One tile's graph: traced and run backward at once, or traced in forward, held in a tier, and run
backward later.

Scope: `TileGraph`. The order of tiles and what happens between them is the layer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from offload.contracts import CoreCall, SplitLayer, Tile
from offload.ends import Outlet, Sink, inlet, is_inlet, run_backward
from offload.recording import Packed, Recording


@dataclass(slots=True)
class HeldCall:
    """A `CoreCall` whose tensors a recording holds."""

    heads: tuple[Packed, ...]
    extras: tuple[Packed, ...]
    options: object

    def load(self, recording: Recording) -> CoreCall:
        heads, extras = (tuple(map(recording.unpack, part)) for part in (self.heads, self.extras))
        return CoreCall(heads=heads, extras=extras, options=self.options)


@dataclass(slots=True)
class TileGraph:
    """A tile's graph from x, o and the parameters to its outputs (y first) and to q, k, v and
    the extras.
    """

    outputs: list[Outlet | None]
    call_outlets: list[Outlet | None]
    call: CoreCall | HeldCall
    recording: Recording | None = None

    @property
    def reaches_core(self) -> bool:
        """Whether any of q, k, v and the extras depends on something that takes a gradient."""
        return any(outlet is not None for outlet in self.call_outlets)

    def hold(self, recording: Recording) -> None:
        """Let `recording`, under which this graph was traced, hold q, k, v and extras too; seals
        it.
        """
        assert isinstance(self.call, CoreCall)
        heads, extras = (
            tuple(map(recording.hold, part)) for part in (self.call.heads, self.call.extras)
        )
        self.call = HeldCall(heads, extras, self.call.options)
        self.recording = recording
        recording.seal()

    @contextmanager
    def bound(self, sources: Mapping[str, Tensor]) -> Iterator[None]:
        """Backward, and `core_call`, happen inside; `sources` are the tile's x and o."""
        with self.recording.bound(sources) if self.recording else nullcontext():
            yield

    @property
    def is_apart(self) -> bool:
        """Whether y's graph and that of q, k, v share no operation, so that running the one
        backward leaves the other whole. They do share one in layers whose norm feeds attention and
        MLP.
        """
        ends = (self.outputs, self.call_outlets)
        ours, theirs = (_operations(o.handle for o in end if o is not None) for end in ends)
        return self.recording is None and not ours & theirs

    def release_call(self) -> CoreCall:
        """q, k, v and extras without a graph, once; they are not held any longer."""
        call, self.call = self.call, HeldCall((), (), None)
        if isinstance(call, CoreCall):
            return call
        assert self.recording is not None
        return call.load(self.recording)

    def backward_outputs(self, grads: Sequence[Tensor]) -> None:
        """From y and the auxiliary outputs; a held graph stays for `backward_call`."""
        run_backward(self.outputs, grads, keep_graph=self.recording is not None)

    def backward_call(self, grads: Sequence[Tensor | None]) -> None:
        """From q, k, v and the extras."""
        run_backward(self.call_outlets, grads, keep_graph=False)


def _operations(roots: Iterable[Tensor]) -> set[Node]:
    """The graph's nodes that may hold tensors: all but its inlets and leaves."""
    todo = [root.grad_fn for root in roots]
    seen: set[Node] = set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen and node.next_functions:
            seen.add(node)
            todo.extend(following for following, _ in node.next_functions)
    return {node for node in seen if not is_inlet(node)}


def trace(
    split: SplitLayer,
    tile: Tile,
    params: Mapping[str, Tensor],
    x: tuple[Tensor, Sink | None],
    o: tuple[Tensor, Sink],
) -> tuple[TileGraph, dict[str, Tensor]]:
    """Run a tile to its end; return its graph and its outputs without graph: y under "", the
    auxiliary by name.

    x without a sink takes no gradient.
    """
    with torch.enable_grad():
        out = split.run(_enter(*x), inlet(*o), tile, params)
        outputs = {"": out.y, **out.aux}
        graph = TileGraph([Outlet.of(t) for t in outputs.values()], *_cut(out.call))
    return graph, {name: tensor.detach() for name, tensor in outputs.items()}


def trace_pre(
    split: SplitLayer, tile: Tile, params: Mapping[str, Tensor], x: tuple[Tensor, Sink | None]
) -> TileGraph:
    """Run a tile up to attention only."""
    with torch.enable_grad():
        return TileGraph([], *_cut(split.pre(_enter(*x), tile, params)))


def _enter(x: Tensor, sink: Sink | None) -> Tensor:
    return x if sink is None else inlet(x, sink)


def _cut(call: CoreCall) -> tuple[list[Outlet | None], CoreCall]:
    outlets = [Outlet.of(tensor) for tensor in (*call.heads, *call.extras)]
    heads, extras = (tuple(t.detach() for t in part) for part in (call.heads, call.extras))
    return outlets, CoreCall(heads=heads, extras=extras, options=call.options)
