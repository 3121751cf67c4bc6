"""The lives of a planned step's tensors on one device, as a two-level layout problem.

Scope: from a trace and a swap plan to blocks (forward and backward of each class of layer, of the
embedding and of the head), their uses one after another, and buffers that live across them.

Time counts traced operations. Of tiles that repeat the traced ones stand for all: what is
transient in one lies where it lay in the one before. Model states and inputs, which are there
throughout, are left out. Kept tiles of a layer are one buffer, from the layer's `post` to the end
of its backward, whose last segment, `pre`, is what lets them go one after another; what copies may
hold is one throughout. Small storages are one buffer of each block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memo.planning.runs import (
    BlockRun,
    block_name,
    entering_storages,
    is_gradient,
    peak_bytes,
    stands_for,
)
from planner.contracts import LayerSwap, Placement, SwapPlan, Tier
from planner.layout import Buffer, Problem, Use
from planner.swap.groups import spread
from planner.trace import Allocation, Kind, LayerTrace, PartTrace, Pass, Segment, StepTrace

SMALL_BYTES = 1 << 20
"""PyTorch keeps storages below it apart from others, too (`kSmallSize`,
c10/core/AllocatorConfig.h)."""

_EMBEDDING, _HEAD = "embedding", "head"


@dataclass(frozen=True, slots=True)
class StepLives:
    """What `solve_two_level` takes."""

    blocks: Mapping[str, Problem]
    uses: tuple[Use, ...]
    buffers: tuple[Buffer, ...]


def step_lives(
    trace: StepTrace,
    swap: SwapPlan,
    *,
    gradient_share: float = 1.0,
    small_bytes: int = SMALL_BYTES,
) -> StepLives:
    """The planned step's. `gradient_share`: the part of each gradient that stays on the device
    once its layer's backward is over; `small_bytes`: from which size on a storage is a buffer of
    its own.

    Raises:
        ValueError: when the plan has another number of layers than the trace.
    """
    if len(swap.layers) != len(trace.order):
        raise ValueError(f"swap has {len(swap.layers)} layers: takes {len(trace.order)}")
    return _Step(trace, swap, gradient_share, small_bytes).lives()


@dataclass(slots=True)
class _Step:
    trace: StepTrace
    swap: SwapPlan
    gradient_share: float
    small_bytes: int
    buffers: list[Buffer] = field(default_factory=list)
    forward: list[BlockRun] = field(init=False)
    backward: list[BlockRun] = field(init=False)

    def __post_init__(self) -> None:
        classes = {layer.name: layer for layer in self.trace.layers}
        parts = [
            (_EMBEDDING, _EMBEDDING, self.trace.embedding),
            *((str(i), n, classes[n].recomputed) for i, n in enumerate(self.trace.order)),
            (_HEAD, _HEAD, self.trace.head),
        ]
        self.forward = self._runs(parts, Pass.FORWARD, 0)
        self.backward = self._runs(parts[::-1], Pass.BACKWARD, self.forward[-1].stop)[::-1]

    @property
    def stop(self) -> int:
        return self.backward[0].stop

    def lives(self) -> StepLives:
        runs = [*self.forward, *reversed(self.backward)]
        blocks = {block_name(run): self._inner(run) for run in runs}
        self._chain_of_hidden_states()
        self._chain_of_their_gradients()
        for forward, backward in zip(self.forward, self.backward, strict=True):
            self._held(forward, backward)
            self._gradients(backward)
        for index, name in enumerate(self.trace.order):
            self._kept(index, next(layer for layer in self.trace.layers if layer.name == name))
        if any(_moves(layer) for layer in self.swap.layers):
            self._add("in flight", self.swap.in_flight_bytes, 0, self.stop)
        uses = [
            Use(run.id, block_name(run), run.start)
            for run in runs
            if blocks[block_name(run)].buffers
        ]
        return StepLives(blocks, tuple(uses), tuple(self.buffers))

    @staticmethod
    def _runs(parts: list[tuple[str, str, PartTrace]], direction: Pass, at: int) -> list[BlockRun]:
        runs = []
        for id_, name, part in parts:
            block = part.forward if direction is Pass.FORWARD else part.backward
            runs.append(BlockRun(f"{id_} {direction}", name, direction, block, at))
            at = runs[-1].stop
        return runs

    # ---- within a block ----

    def _inner(self, run: BlockRun) -> Problem:
        block = run.block
        lives = [(a, a.born, a.freed) for a in block.allocations if a.is_inner]
        if self.gradient_share < 1 and run.direction is Pass.BACKWARD:
            stop = len(block.operations)
            lives += [(a, a.born, stop) for a in block.allocations if is_gradient(a)]
        sizes = [
            (str(a.id), born, freed, a.size_bytes * stands_for(block, a))
            for a, born, freed in lives
            if freed is not None and freed > born and a.size_bytes
        ]
        large = [Buffer(*life) for life in sizes if life[3] >= self.small_bytes]
        small = peak_bytes((*life[1:],) for life in sizes if life[3] < self.small_bytes)
        if small:
            large.append(Buffer("small", 0, max(1, len(block.operations)), small))
        return Problem(tuple(large))

    # ---- across blocks ----

    def _chain_of_hidden_states(self) -> None:
        """Layers' inputs, and the last one's output, which the head takes."""
        for index, (producer, taker) in enumerate(
            zip(self.forward, self.forward[1:], strict=False)
        ):
            backward = self.backward[index + 1]
            made = producer.of_kind(Kind.OUTPUT)
            born = producer.start + min(
                (a.born for a in made), default=len(producer.block.operations)
            )
            size = sum(a.size_bytes for a in made) or self._x_bytes(min(index, self._last))
            ends = [
                backward.start + (a.freed or 0)
                for a in entering_storages(backward, Kind.SKELETAL)[:1]
            ]
            tier = self.swap.layers[index].x if index <= self._last else Tier.DEVICE
            end = ends[0] if ends else backward.stop
            self._hold(f"x {taker.id}", size, (born, taker.stop), (backward.start, end), tier)

    def _chain_of_their_gradients(self) -> None:
        """What a block's backward hands to the one before; one that hands on the storage it was
        given has no output of its own.
        """
        given: tuple[int, int] | None = None
        for run in reversed(self.backward):
            entering = [
                a for a in entering_storages(run, Kind.INPUT) if a.size_bytes >= SMALL_BYTES
            ]
            made = run.of_kind(Kind.OUTPUT)
            if given is not None and (entering or made):
                end = max((a.freed or 0 for a in entering), default=len(run.block.operations))
                self._add(f"gradient for {run.id}", given[0], given[1], run.start + end)
                given = None
            if made:
                size = sum(a.size_bytes for a in made)
                given = size, run.start + min(a.born for a in made)

    def _held(self, forward: BlockRun, backward: BlockRun) -> None:
        """What forward leaves for backward, but for the hidden states."""
        last = self.backward[self._last + 1]
        for a in forward.block.allocations:
            if a.is_inner or a.born < 0 or a.kind is Kind.OUTPUT:
                continue
            if a.kind is Kind.GRADIENT:
                self._gradient_of_forward(a, forward, backward)
                continue
            if a.kind is Kind.INPUT:  # made before the layers, for all of them
                end = self.forward[-1].end_of(a.id) or backward.end_of(a.id) or backward.stop
            else:
                end = backward.end_of(a.id) or last.end_of(a.id) or backward.stop
            is_skeletal = a.kind in (Kind.SKELETAL, Kind.EXCHANGED)
            tier = self._tier_of_o(forward) if is_skeletal else Tier.DEVICE
            times = (forward.start + a.born, forward.stop)
            wanted = backward.start
            if a.kind is Kind.EXCHANGED:  # from and for the core alone
                times = (times[0], forward.first(Segment.POST, len(forward.block.operations)))
                wanted = backward.first(Segment.CORE, 0)
            size = a.size_bytes * stands_for(forward.block, a)
            self._hold(f"held {forward.id} {a.id}", size, times, (wanted, end), tier)

    def _gradient_of_forward(self, made: Allocation, forward: BlockRun, backward: BlockRun) -> None:
        """The loss makes the head's with its tiles; ranks share it when its backward is over."""
        name = f"gradient {forward.id} {made.id}"
        self._add(name, made.size_bytes, forward.start + made.born, backward.stop)
        left = round(made.size_bytes * self.gradient_share)
        self._add(f"{name} left", left, backward.stop, self.stop + 1)

    def _gradients(self, run: BlockRun) -> None:
        """A part's gradients: from the first one's birth, or where ranks share them from the end of
        its backward, to the end of the step.
        """
        made = [a for a in run.block.allocations if is_gradient(a)]
        size = round(sum(a.size_bytes for a in made) * self.gradient_share)
        born = (
            run.stop
            if self.gradient_share < 1
            else run.start + min((a.born for a in made), default=0)
        )
        self._add(f"gradients {run.part} {run.id}", size, born, self.stop + 1)

    def _kept(self, index: int, layer: LayerTrace) -> None:
        """A tile's graph is whole until its `pre`'s backward has run, which is the block's end."""
        forward, backward = self.forward[index + 1], self.backward[index + 1]
        born = forward.first(Segment.POST, 0)
        size_bytes = _kept_bytes(layer, self.swap.layers[index])
        self._add(f"kept {index}", size_bytes, born, backward.stop)

    # ---- small things ----

    @property
    def _last(self) -> int:
        return len(self.trace.order) - 1

    def _x_bytes(self, index: int) -> int:
        name = self.trace.order[index]
        return next(layer.x_bytes for layer in self.trace.layers if layer.name == name)

    def _tier_of_o(self, run: BlockRun) -> Tier:
        if run.part in (_EMBEDDING, _HEAD):
            return Tier.DEVICE
        return self.swap.layers[self.forward.index(run) - 1].o

    def _hold(
        self, name: str, size: int, made: tuple[int, int], wanted: tuple[int, int], tier: Tier
    ) -> None:
        """From being made to being freed; away from the device only while made and wanted."""
        if tier is Tier.DEVICE:
            self._add(name, size, made[0], wanted[1])
        else:
            self._add(f"{name} out", size, *made)
            self._add(f"{name} back", size, *wanted)

    def _add(self, name: str, size_bytes: int, born: int, freed: int) -> None:
        if size_bytes and freed > born:
            self.buffers.append(Buffer(name, born, freed, size_bytes))


def _kept_bytes(layer: LayerTrace, swap: LayerSwap) -> int:
    """Of its kept tiles, the last of which may be shorter than the others."""
    kept = [placement is Placement.KEEP for placement in spread(swap.tiles)]
    last_tokens = layer.tokens - (layer.tiles - 1) * layer.tile_tokens
    last_bytes = round(layer.stored_bytes * last_tokens / layer.tile_tokens)
    return sum(kept[:-1]) * layer.stored_bytes + kept[-1] * last_bytes


def _moves(layer: LayerSwap) -> bool:
    tiles = layer.tiles.get(Placement.HOST, 0) + layer.tiles.get(Placement.SSD, 0)
    return bool(tiles) or {layer.x, layer.o} != {Tier.DEVICE}
