"""The wrapped model's runtime as a trace runs it: one layer of each class, a few tiles of each.

Scope: `TracedRuntime`. It runs the layers by the code that runs them in training; what it changes
is which layers and tiles are run, and that a recorder is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from memo.attention.core import AttentionCore
from memo.attention.fastest import Fastest
from memo.layers import HFLayer, LayerArguments, collected_names
from memo.loss.tiled import LossSpec
from memo.modules import PlainForward
from memo.parallel.contracts import TokenShares
from memo.runtime import Runtime, WrappedLayer
from memo.tiling import auto_tile_tokens, holds_pre
from memo.tracing.exchanged import ExchangedCalls, ExchangedCore
from memo.tracing.fused import FusedCore
from memo.tracing.marks import Listener, MarkedCore, MarkedSplit, MarkedTiles, MarkingStore
from memo.tracing.places import few_of_many
from memo.tracing.settled import NoReplay
from offload import (
    Policy,
    Tile,
    TiledForward,
    run_tiled,
    run_tokenwise,
    split_tokens,
    spread_placements,
)
from planner.contracts import Stored
from planner.trace.contracts import Kind, Pass, Segment
from planner.trace.sampling import Sample

DeviceKind = Literal["cpu", "cuda"]


@dataclass(slots=True)
class Calls:
    """What the traced layers' calls were: their inputs and outputs, and where on the tape they
    began.
    """

    recorder: Listener
    cuts: list[tuple[str, Pass, int]] = field(default_factory=list)
    kinds: dict[int, Kind] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    stored: dict[tuple[str, int], int] = field(default_factory=dict)
    stored_pre: dict[tuple[str, int], int] = field(default_factory=dict)
    tile: tuple[str, int] = ("", 0)

    def cut(self, part: str, direction: Pass, segment: Segment) -> None:
        """From here on the tape is of `part`."""
        self.recorder.segment, self.recorder.direction = segment, direction
        self.cuts.append((part, direction, self.recorder.tape.now))

    def mark(self, tensor: Tensor, kind: Kind, is_for_pre: bool) -> None:
        """What a storage is that the runtime holds for backward."""
        storage = self.recorder.storage_of(tensor)
        if storage is None or storage.id in self.kinds:
            return
        self.kinds[storage.id] = kind
        if kind is Kind.STORED:
            for sums in (self.stored, self.stored_pre)[: 1 + is_for_pre]:
                sums[self.tile] = sums.get(self.tile, 0) + storage.size_bytes

    def stored_bytes(self, kind: str) -> int:
        """Of the first tile of a layer of this kind, which is as long as any."""
        return self.stored.get((kind, 0), 0)

    def stored_pre_bytes(self, kind: str) -> int:
        """As `stored_bytes`, of what backward wants with `pre` alone."""
        return self.stored_pre.get((kind, 0), 0)

    def id_of(self, tensor: Tensor) -> int:
        storage = self.recorder.storage_of(tensor)
        assert storage is not None, "a layer's input or output that was never seen"
        return storage.id


@dataclass(slots=True)
class TracedRuntime(Runtime):
    """`samples` are the layers that are run, one of each kind; all others hand on what they get.

    `device_kind`: whose tile sizes and attention kernels are traced; `shares`: of ranks that share
    a sequence, of which this one has as many tokens as any, and `stored` what attention's backward
    finds of what they exchanged; `everything`: every tile; `is_fake`: tensors are, and kernels of
    CUDA are stood in for; `fastest` chooses kernels where they are not.
    """

    calls: Calls = field(kw_only=True)
    samples: dict[str, WrappedLayer] = field(kw_only=True)
    device_kind: DeviceKind = field(kw_only=True)
    shares: TokenShares = field(kw_only=True)
    stored: Stored = field(kw_only=True, default=Stored.BEFORE)
    everything: bool = field(kw_only=True, default=False)
    is_fake: bool = field(kw_only=True, default=True)
    fastest: Fastest = field(kw_only=True, default_factory=Fastest)
    _tuple_lengths: dict[str, int | None] = field(init=False, default_factory=dict)
    _core_over_ranks: ExchangedCore | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        Runtime.__post_init__(self)
        self.store = MarkingStore(None, len(self.layers), on_put=self.calls.mark)
        self.core = (
            FusedCore(self.store)
            if self._stands_in
            else AttentionCore(self.store, fastest=self.fastest)
        )

    @property
    def recorder(self) -> Listener:
        return self.calls.recorder

    def run_layer(
        self, layer: WrappedLayer, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if self.samples[layer.kind].module is not layer.module:
            return _in_form(x, self._tuple_lengths[layer.kind])
        tiled = self.modes[layer.kind].is_tiled
        self.calls.cut(layer.kind, Pass.FORWARD, Segment.PRE if tiled else Segment.WHOLE)
        self.calls.inputs[layer.kind] = self.calls.id_of(x)
        self._on_backward_of(x)
        output = Runtime.run_layer(self, layer, forward, *args, **kwargs)
        y: Tensor = output if isinstance(output, Tensor) else output[0]
        self.calls.outputs[layer.kind] = self.calls.id_of(y)
        self._tuple_lengths[layer.kind] = len(output) if isinstance(output, tuple) else None
        self._cut_on_backward(y, layer.kind, Segment.POST if tiled else Segment.WHOLE)
        self.calls.cut("", Pass.FORWARD, Segment.HEAD)
        return output

    def _on_backward_of(self, x: Tensor) -> None:
        if not self.calls.outputs:
            self._cut_on_backward(x, "embedding", Segment.EMBEDDING)

    def _cut_on_backward(self, tensor: Tensor, part: str, segment: Segment) -> None:
        if tensor.grad_fn is not None:
            tensor.grad_fn.register_prehook(lambda _: self.calls.cut(part, Pass.BACKWARD, segment))

    def _run_tiled(self, layer: WrappedLayer, x: Tensor, arguments: LayerArguments) -> Any:
        split = HFLayer(layer.module, arguments, self.switch, collected_names())
        policy = self.policy(x, layer.module)
        over_ranks = self._over_ranks()
        is_sampled = policy.tiles[-1].index + 1 > len(policy.tiles)
        outputs = run_tiled(
            TiledForward(
                split=MarkedSplit(split, self.recorder, partial(self._tile_begins, layer.kind)),
                core=MarkedCore(over_ranks or self.core, self.recorder),
                policy=policy,
                store=self.store,
                count=self.counts[layer.kind],
                replay=NoReplay(x.device),
                name=layer.kind,
                join=None if over_ranks is None else ExchangedCalls(over_ranks, is_sampled),
            ),
            x,
        )
        y = outputs.pop("")
        split.report_auxiliary(outputs)
        return split.output(y)

    def _run_whole(
        self, layer: WrappedLayer, forward: Callable[..., Any], x: Tensor, arguments: LayerArguments
    ) -> Any:
        """As the runtime's; what runs within backward is recomputation."""

        def told(*args: Any, **kwargs: Any) -> Any:
            first = self.recorder.direction is Pass.FORWARD
            direction = Pass.FORWARD if first else Pass.RECOMPUTE
            with self.recorder.within(Segment.WHOLE, direction):
                return forward(*args, **kwargs)

        return Runtime._run_whole(self, layer, told, x, arguments)

    def _over_ranks(self) -> ExchangedCore | None:
        """One for all layers, as a call of the model has: what it caches is there once."""
        if self._core_over_ranks is None and self.shares.ranks > 1:
            self._core_over_ranks = ExchangedCore.of(
                self.core,
                self.store,
                self.shares,
                self.stored,
                is_cuda=self._stands_in,
                pieces=iter if self.everything else partial(few_of_many, self.recorder),
                on_held=self._on_held,
            )
        return self._core_over_ranks

    @property
    def _stands_in(self) -> bool:
        return self.is_fake and self.device_kind == "cuda"

    def _on_held(self, tensor: Tensor) -> None:
        self.calls.mark(tensor, Kind.EXCHANGED, False)

    def _tile_begins(self, kind: str, tile: Tile) -> None:
        self.calls.tile = kind, tile.index

    def policy(self, x: Tensor, layer: nn.Module) -> Policy:
        """As the runtime's, with tiles left out."""
        like = self._like(x)
        self.tile_tokens = self.options.tile_tokens or auto_tile_tokens(like, layer)
        tiles = self._tiles(x.shape[1], self.tile_tokens)
        return Policy(
            tiles=tiles,
            placements=spread_placements(len(tiles), self.options.fractions),
            x=self.options.skeletal,
            o=self.options.skeletal,
            hold_pre=holds_pre(like, len(self.layers)),
        )

    def run_norm(
        self, norm: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As the runtime's, with tiles left out."""
        if kwargs or len(args) != 1 or args[0].ndim != 3:
            return forward(*args, **kwargs)
        (x,) = args
        tile_tokens = self.options.tile_tokens or auto_tile_tokens(self._like(x), norm)
        tiles = self._tiles(x.shape[1], tile_tokens)
        plain = PlainForward(norm)
        return run_tokenwise(plain.with_params, dict(norm.named_parameters()), x, tiles)

    def loss_tiles(self, spec: LossSpec, hidden: Tensor) -> Iterator[slice]:
        """As the loss's own, with tiles left out. `hidden`: [rows, hidden]."""
        tiles = split_tokens(hidden.shape[0], spec.tile_tokens(self._like(hidden).device))
        marked = MarkedTiles.of(self.recorder, tiles, self._sample(len(tiles)))
        return (slice(tile.start, tile.stop) for tile in marked)

    def _tiles(self, tokens: int, tile_tokens: int) -> MarkedTiles:
        tiles = split_tokens(tokens, tile_tokens)
        return MarkedTiles.of(self.recorder, tiles, self._sample(len(tiles)))

    def _sample(self, count: int) -> Sample:
        return Sample.of(count, everything=self.everything)

    def _like(self, x: Tensor) -> Tensor:
        """A tensor of x's shape on a device of the kind that is traced: budgets are by kind."""
        return x if self.device_kind == "cpu" else x.new_empty(x.shape, device="meta")


def _in_form(x: Tensor, tuple_length: int | None) -> Any:
    return x if tuple_length is None else (x, *[None] * (tuple_length - 1))
