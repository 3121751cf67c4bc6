"""A decoder layer of a few lines and attention in plain torch, for tests of the runtime.

Scope: `ToySplit` and `ToyCore`, the two protocols of `offload.contracts`, and the same layer as one
ordinary graph (`plain`). Nothing here knows how the runtime works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from offload import (
    CoreCall,
    CoreEnd,
    CoreState,
    LayerCount,
    Placement,
    Policy,
    Replay,
    TensorStore,
    Tier,
    Tile,
    TiledForward,
    TileOutput,
    split_tokens,
)

HIDDEN, HEADS, HEAD_DIM, EXPERTS = 5, 2, 3, 4
BATCH, TOKENS = 2, 7
SHAPES = {
    "norm": (HIDDEN,),
    "wq": (HIDDEN, HEADS * HEAD_DIM),
    "wk": (HIDDEN, HEADS * HEAD_DIM),
    "wv": (HIDDEN, HEADS * HEAD_DIM),
    "heat": (HEADS,),
    "wo": (HEADS * HEAD_DIM, HIDDEN),
    "up": (HIDDEN, 9),
    "down": (9, HIDDEN),
    "gate": (HIDDEN, EXPERTS),
}


def toy_params(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random parameters that all take a gradient."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
        for name, shape in SHAPES.items()
    }


def toy_input(dtype: torch.dtype = torch.float64, tokens: int = TOKENS) -> Tensor:
    """x as [batch, tokens, hidden]."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(BATCH, tokens, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)


@dataclass
class ToySplit:
    """Norm, q k v with a table of positions, attention with a factor per head, MLP, router.

    `parallel`: MLP and router see the norm that attention sees, so that both graphs share it.
    """

    params: Mapping[str, Tensor]
    table: Tensor
    parallel: bool = False
    dropout: float = 0.0
    runs: list[str] = field(default_factory=list)

    @property
    def constants(self) -> Sequence[Tensor]:
        return (self.table,)

    def pre(self, x: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> CoreCall:
        self.runs.append("pre")
        return self._call(self._norm(x, params), tile, params)

    def run(self, x: Tensor, o: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> TileOutput:
        self.runs.append("run")
        normed = self._norm(x, params)
        call = self._call(normed, tile, params)
        hidden = x + self._drop(o.flatten(2) @ params["wo"])
        inner = normed if self.parallel else hidden
        mlp = torch.nn.functional.gelu(inner @ params["up"]) @ params["down"]
        aux = {"router": inner @ params["gate"]}
        return TileOutput(y=hidden + self._drop(mlp), aux=aux, call=call)

    @contextmanager
    def backward_scope(self) -> Iterator[None]:
        self.runs.append("scope entered")
        yield
        self.runs.append("scope left")

    def _norm(self, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        return (
            self._drop(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)) * params["norm"]
        )

    def _call(self, normed: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> CoreCall:
        positions = self.table[tile.start : tile.stop]
        q, k, v = (normed @ params[name] for name in ("wq", "wk", "wv"))
        heads = tuple(
            t.unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2) for t in (q * positions, k, v)
        )
        return CoreCall(heads=heads, extras=(params["heat"],), options="toy")

    def _drop(self, tensor: Tensor) -> Tensor:
        return torch.nn.functional.dropout(tensor, self.dropout)


def toy_attention(call: CoreCall) -> Tensor:
    """Causal attention whose scores are multiplied by a factor per head; [batch, tokens, heads,
    head_dim].
    """
    q, k, v = call.heads
    (heat,) = call.extras
    scores = (q @ k.mT) * heat[:, None, None]
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


@dataclass
class ToyState:
    """One number, counted as eight bytes."""

    nbytes: int = 8


@dataclass
class ToyCore:
    """`toy_attention`; backward runs it again under autograd. `fault` is raised there once."""

    checks: ClassVar[bool] = True

    forwards: int = 0
    backwards: int = 0
    fault: Exception | None = None

    def forward(self, call: CoreCall, tier: Tier | None) -> tuple[Tensor, CoreState | None]:
        assert not torch.is_grad_enabled()
        self.forwards += 1
        return toy_attention(call), None if tier is None else ToyState()

    def backward(
        self, call: CoreCall, end: CoreEnd
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        self.backwards += 1
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        assert call.options == "toy"
        leaves = [t.detach().requires_grad_() for t in (*call.heads, *call.extras)]
        with torch.enable_grad():
            again = toy_attention(replace(call, heads=tuple(leaves[:3]), extras=tuple(leaves[3:])))
        assert not self.checks or torch.equal(again, end.o), (
            "the runtime gave other q, k, v or o than in forward"
        )
        grads = torch.autograd.grad(again, leaves, end.grad_o)
        return grads[:3], grads[3:]


@dataclass
class Toy:
    """A toy layer and all that runs it."""

    split: ToySplit
    core: ToyCore = field(default_factory=ToyCore)
    store: TensorStore = field(default_factory=TensorStore)
    count: LayerCount = field(default_factory=LayerCount)

    @classmethod
    def of(
        cls,
        params: Mapping[str, Tensor],
        *,
        tokens: int = TOKENS,
        parallel: bool = False,
        dropout: float = 0.0,
    ) -> Toy:
        table = torch.linspace(0.5, 1.5, tokens, dtype=params["wq"].dtype)[:, None]
        return cls(ToySplit(params, table, parallel, dropout))

    def forward(
        self,
        tile_tokens: int,
        placements: Sequence[Placement] = (Placement.RECOMPUTE,),
        *,
        skeletal: Tier = Tier.DEVICE,
        hold_pre: bool = False,
    ) -> TiledForward:
        """One call of the layer; `placements` repeat over its tiles."""
        tiles = split_tokens(self.split.table.shape[0], tile_tokens)
        placed = tuple(placements[tile.index % len(placements)] for tile in tiles)
        policy = Policy(tiles=tiles, placements=placed, x=skeletal, o=skeletal, hold_pre=hold_pre)
        return TiledForward(
            split=self.split,
            core=self.core,
            policy=policy,
            store=self.store,
            count=self.count,
            replay=Replay(torch.device("cpu")),
        )

    def held_bytes(self) -> int:
        """Bytes in the store now, in all tiers."""
        return sum(count.held_bytes for count in self.store.counts.values())


def plain(split: ToySplit, x: Tensor) -> dict[str, Tensor]:
    """The layer as one ordinary graph over all tokens: y under "", the router's output beside."""
    whole = Tile(0, 0, x.shape[1])
    o = toy_attention(split.pre(x, whole, split.params))
    out = split.run(x, o, whole, split.params)
    return {"": out.y, **out.aux}


def gradients(
    outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """Gradients of inputs from fixed random gradients of all outputs."""
    generator = torch.Generator().manual_seed(5)
    grads = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
        for t in outputs.values()
    ]
    wanted = {name: t for name, t in inputs.items() if t.requires_grad}
    found = torch.autograd.grad(
        list(outputs.values()), list(wanted.values()), grads, allow_unused=True
    )
    return dict(zip(wanted, found, strict=True))
