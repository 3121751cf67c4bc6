"""What a wrapped model carries: how its layers run, the store, and the counts.

Scope: running one layer call by the options. When a forward is ours at all is `entry.py`'s
business, which layers can be cut is found by `check.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from memo.attention.core import AttentionCore
from memo.attention.interface import current_seam
from memo.contracts import LayerMode, LayerPlacement, Options
from memo.layers import HFLayer, LayerArguments, collected_names
from memo.modules import PlainForward
from memo.parallel.call import Parallel
from memo.parallel.core import ParallelCore
from memo.parallel.outputs import gather_auxiliary
from memo.parallel.tiled import TiledExchanges
from memo.passes import Passes
from memo.predicted import Forecast
from memo.switch import OneThread, Switch
from memo.tiling import auto_tile_tokens, holds_pre
from memo.warning import warn_once
from offload import (
    LayerCount,
    MemoError,
    Placement,
    Policy,
    Replay,
    TensorStore,
    Tier,
    TiledForward,
    open_disk,
    run_tiled,
    run_tokenwise,
    run_whole,
    split_tokens,
    spread_placements,
)
from offload.contracts import CallJoiner


@dataclass(frozen=True, slots=True)
class WrappedLayer:
    """A decoder layer of the model: `kind` names its class (with what tells apart kinds of one
    class), `index` counts within the kind.
    """

    module: nn.Module
    kind: str
    index: int


@dataclass(slots=True)
class Runtime:
    """A wrapped model's state. `modes` and `counts` are by layer kind; `parallel` None: a sequence
    is one rank's; `forecast` is what its plan predicts, None: it has none.
    """

    options: Options
    layers: list[WrappedLayer]
    modes: dict[str, LayerMode]
    switch: Switch
    norms: list[nn.Module]
    parallel: Parallel | None = None
    forecast: Forecast | None = None
    passes: Passes = field(default_factory=Passes)
    counts: dict[str, LayerCount] = field(default_factory=dict)
    leaves: list[nn.Module] = field(default_factory=list)
    thread: OneThread = field(default_factory=OneThread)
    is_removed: bool = False
    is_division_known: bool = False
    notes: dict[str, int] = field(default_factory=dict)
    tile_tokens: int | None = None
    since_s: float = field(default_factory=perf_counter)
    store: TensorStore = field(init=False)
    core: AttentionCore = field(init=False)

    def __post_init__(self) -> None:
        self.store = _store(self.options, self.layers)
        self.store.prepare()
        planned, disk = self.options.planned, self.store.disk
        if planned is not None and disk is not None:
            disk.reserve(planned.ssd_bytes)
        self.core = AttentionCore(self.store)
        self.counts = {kind: LayerCount() for kind in self.modes}

    @property
    def has_tiled(self) -> bool:
        return any(mode.is_tiled for mode in self.modes.values())

    def note(self, what: str) -> bool:
        """Count an event for the report; true the first time."""
        self.notes[what] = self.notes.get(what, 0) + 1
        return self.notes[what] == 1

    def run_layer(
        self, layer: WrappedLayer, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run one decoder layer as `forward(hidden_states, *args, **kwargs)` would."""
        x, args, kwargs = _hidden_states(args, kwargs)
        self._check_planned(x)
        arguments = LayerArguments(args, kwargs, x.shape[1])
        if layer is not self.layers[0] or self.forecast is None or not torch.is_grad_enabled():
            return self._run(layer, forward, x, arguments)
        start = self.passes.begin(x)
        output = self._run(layer, forward, x, arguments)
        y = output if isinstance(output, Tensor) else output[0]
        self.passes.end_with(y, x, start, is_one_node=self.modes[layer.kind].is_tiled)
        return output

    def _check_planned(self, x: Tensor) -> None:
        """`x`: a layer's input, [batch, tokens, hidden]. Without gradients nothing is stored."""
        planned = self.options.planned
        if planned is None or not torch.is_grad_enabled():
            return
        batch, tokens = x.shape[:2]
        if isinstance(core := current_seam().core, ParallelCore):
            tokens = core.view.shares.total_tokens
        if (batch, tokens) != (planned.batch, planned.tokens):
            raise MemoError(
                f"this call has {batch} x {tokens} tokens (sequences x length), and the model's "
                f"plan is for {planned.batch} x {planned.tokens}: pad to that, or wrap the model "
                "with a plan for this"
            )
        self._check_division()

    def _check_division(self) -> None:
        """In the first call with gradients: engines divide parameters after `wrap`."""
        if self.forecast is None or self.is_division_known:
            return
        from memo.planning.applied import division_note  # planning imports this module

        note = division_note(self.forecast.plan, [layer.module for layer in self.layers])
        if note is not None:
            self.note(note)
        self.is_division_known = True

    def _run(
        self, layer: WrappedLayer, forward: Callable[..., Any], x: Tensor, arguments: LayerArguments
    ) -> Any:
        if self.modes[layer.kind].is_tiled and self._can_tile(layer, forward, arguments):
            return self._run_tiled(layer, x, arguments)
        return self._run_whole(layer, forward, x, arguments)

    def _can_tile(
        self, layer: WrappedLayer, forward: Callable[..., Any], arguments: LayerArguments
    ) -> bool:
        """Whether this call is as the self-check found calls of its kind; says so once if not."""
        reason = None
        if getattr(forward, "__func__", None) is not type(layer.module).forward:
            reason = "somebody else's forward stands on the layer"
        elif torch.is_grad_enabled() and any(t.requires_grad for t in arguments.tensors()):
            reason = "arguments beside the hidden states take gradients"
        if reason is not None:
            self._refuse_whole(reason, layer)
            warn_once(self, f"layers of class {layer.kind} run whole, not tile by tile: {reason}")
        return reason is None

    def _refuse_whole(self, reason: str, layer: WrappedLayer) -> None:
        if isinstance(current_seam().core, ParallelCore):
            raise MemoError(
                f"layers of class {layer.kind} would run whole ({reason}), and sequence "
                "parallelism needs them as the self-check found them"
            )

    def _run_tiled(self, layer: WrappedLayer, x: Tensor, arguments: LayerArguments) -> Any:
        core, policy = current_seam().core, self.policy(x, layer.module)
        over_ranks = core if isinstance(core, ParallelCore) else None
        first = 0 if over_ranks is None else over_ranks.view.own[0]
        split = HFLayer(layer.module, arguments, self.switch, collected_names(), first)
        outputs = run_tiled(
            TiledForward(
                split=split,
                core=core,
                policy=policy,
                store=self.store,
                count=self.counts[layer.kind],
                replay=Replay(x.device, salt=0 if over_ranks is None else over_ranks.rank),
                name=f"{layer.kind} {layer.index}",
                join=None if over_ranks is None else self._exchanging(over_ranks),
            ),
            x,
        )
        y = outputs.pop("")
        if over_ranks is not None:
            outputs = gather_auxiliary(outputs, over_ranks)
        split.report_auxiliary(outputs)
        return split.output(y)

    def _exchanging(self, core: ParallelCore) -> Callable[[], CallJoiner]:
        # Ranks have as many tokens in a tile, and not as many tokens: a first tile may be shorter.
        assert self.tile_tokens is not None, "no policy was made"
        return TiledExchanges(core, self.tile_tokens)

    def run_norm(
        self, norm: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run a norm outside the layers as `forward` would."""
        ours = getattr(forward, "__func__", None) is type(norm).forward
        if kwargs or len(args) != 1 or args[0].ndim != 3 or not ours:
            return forward(*args, **kwargs)
        (x,) = args
        tiles = split_tokens(x.shape[1], self.options.tile_tokens or auto_tile_tokens(x, norm))
        plain = PlainForward(norm)
        return run_tokenwise(plain.with_params, dict(norm.named_parameters()), x, tiles)

    def policy(self, x: Tensor, layer: nn.Module) -> Policy:
        """Tiles and placements for a layer whose input is `x` ([batch, tokens, hidden])."""
        self.tile_tokens = self.options.tile_tokens or auto_tile_tokens(x, layer)
        tiles = split_tokens(x.shape[1], self.tile_tokens)
        placed = self._placement(layer)
        self._note_fractions(placed, len(tiles))
        # A plan counts on graphs of `pre` as its trace had them, where x and o were on the device.
        is_here = placed.x is placed.o is Tier.DEVICE
        may_hold = is_here or self.options.planned is not None
        return Policy(
            tiles=tiles,
            placements=spread_placements(len(tiles), placed.fractions),
            x=placed.x,
            o=placed.o,
            hold_pre=may_hold and holds_pre(x, len(self.layers)),
        )

    def _note_fractions(self, placed: LayerPlacement, tile_count: int) -> None:
        if tile_count < len(placed.fractions) and torch.is_grad_enabled():
            self.note(
                f"a layer has {tile_count} tile(s) of {self.tile_tokens:,} tokens, too few for "
                f"fractions of {len(placed.fractions)} placements: a smaller tile_tokens makes more"
            )

    def _placement(self, module: nn.Module) -> LayerPlacement:
        planned = self.options.planned
        if planned is None:
            return self.options.everywhere
        modules = (layer.module for layer in self.layers)
        return next(p for m, p in zip(modules, planned.layers, strict=True) if m is module)

    def _run_whole(
        self, layer: WrappedLayer, forward: Callable[..., Any], x: Tensor, arguments: LayerArguments
    ) -> Any:
        args, kwargs = arguments.args, arguments.kwargs
        if not torch.is_grad_enabled():
            return forward(x, *args, **kwargs)
        module, seam = layer.module, current_seam()

        def run(hidden: Tensor) -> Any:
            # A second run, in backward, must find attention as the first one did.
            with self.switch.on(), seam.entered():
                return forward(hidden, *args, **kwargs)

        return run_whole(
            run,
            x,
            placement=self._whole_placement(layer),
            constants=(*module.parameters(), *module.buffers(), *arguments.tensors()),
            store=self.store,
            count=self.counts[layer.kind],
        )

    def _whole_placement(self, layer: WrappedLayer) -> Placement:
        # A whole layer is one tile, so fractions are spread over the layers of its kind.
        if self.options.planned is not None:
            return next(iter(self._placement(layer.module).fractions))
        total = sum(other.kind == layer.kind for other in self.layers)
        return spread_placements(total, self.options.fractions)[layer.index]


def _store(options: Options, layers: Sequence[WrappedLayer]) -> TensorStore:
    spill = options.spill
    return TensorStore(
        options.in_flight_bytes,
        # A plan knows what all layers move; nothing is to be told from the first one.
        expected_groups=len(layers) if options.planned is None else 0,
        host_bytes=options.host_bytes,
        devices=tuple({p.device: None for layer in layers for p in layer.module.parameters()}),
        open_disk=None
        if spill is None
        else partial(
            open_disk,
            spill.directories,
            size_bytes=spill.size_bytes,
            verify=spill.verify,
            raw=spill.raw,
        ),
    )


def _hidden_states(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest
