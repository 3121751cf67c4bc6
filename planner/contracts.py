"""What the planner is asked, and the words of its answers: a workload, and where everything goes.

Scope: plain data and its checks. A whole answer is `plan.py`'s; hardware, traces and layouts have
contracts of their own, beside what makes them. Names of tiers, lanes and placements are the
runtime's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Tier(StrEnum):
    """Where stored bytes lie."""

    DEVICE = "device"
    HOST = "host"
    SSD = "ssd"


class Placement(StrEnum):
    """Where a tile's rebuildable tensors are between forward and backward."""

    KEEP = "keep"
    HOST = "host"
    SSD = "ssd"
    RECOMPUTE = "recompute"


_TIERS = {Placement.KEEP: Tier.DEVICE, Placement.HOST: Tier.HOST, Placement.SSD: Tier.SSD}


class Stored(StrEnum):
    """What is stored for attention's backward, where the layer's `o` is, of what ranks that share a
    sequence exchange (a rank's heads, of all tokens): nothing, so that backward exchanges q, k, v
    and o again; o; or q, k, v and o, so that gradients are all that it exchanges.
    """

    BEFORE = "before"
    OUTPUT = "output"
    AFTER = "after"


class Lane(StrEnum):
    """Where transfers queue, each beside the others and beside compute."""

    D2H = "d2h"
    H2D = "h2d"
    SSD_WRITE = "ssd write"
    SSD_READ = "ssd read"


Train = Literal["full", "lora"]
OffloadOptimizer = Literal["none", "host", "ssd"]


def check_at_least(least: int, /, **values: float) -> None:
    """Raise `ValueError`, which opens with the name, for a value below `least`."""
    for name, value in values.items():
        if not value >= least:  # NaN is not
            raise ValueError(f"{name} is {value}: takes {least} or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRun:
    """`count` layers of one class, one after another."""

    layer_class: str
    count: int

    def __post_init__(self) -> None:
        check_at_least(1, count=self.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is trained, and how: a model's decoder layers in forward order, `parameters` of all its
    modules, `tokens` of one sequence over all ranks that share it, `batch` sequences a step and
    data-parallel rank. `sequence_parallel` ranks share a sequence; `ranks` are all.
    """

    model: str
    layers: tuple[LayerRun, ...]
    parameters: int
    tokens: int
    batch: int = 1
    dtype: str = "bfloat16"
    train: Train = "full"
    zero: Literal[0, 1, 2, 3] = 0
    offload_optimizer: OffloadOptimizer = "none"
    ranks: int = 1
    sequence_parallel: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, parameters=self.parameters, tokens=self.tokens, batch=self.batch)
        check_at_least(1, ranks=self.ranks, sequence_parallel=self.sequence_parallel)
        if not self.layers:
            raise ValueError("layers is empty: takes one run of layers or more")
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel is {self.sequence_parallel}: takes a divisor of ranks, "
                f"which is {self.ranks}"
            )
        if self.zero and self.ranks == 1:
            raise ValueError(f"zero is {self.zero}: takes 0 where ranks is 1")

    @property
    def layer_count(self) -> int:
        return sum(run.count for run in self.layers)

    @property
    def step_tokens(self) -> int:
        """Tokens of one step over all ranks."""
        return self.tokens * self.batch * (self.ranks // self.sequence_parallel)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSwap:
    """One layer: how many of its tiles are where (placements without a tile may be left out), and
    where its input `x` and attention's output `o` go.
    """

    tiles: Mapping[Placement, int]
    x: Tier = Tier.DEVICE
    o: Tier = Tier.DEVICE

    def __post_init__(self) -> None:
        for placement, count in self.tiles.items():
            check_at_least(0, **{f"tiles.{placement}": count})
        if not self.tile_count:
            raise ValueError("tiles is without a tile: takes one or more")

    @property
    def tile_count(self) -> int:
        return sum(self.tiles.values())

    @property
    def tiers(self) -> frozenset[Tier]:
        """Where any of it is stored."""
        used = (placement for placement, count in self.tiles.items() if count)
        return frozenset((self.x, self.o, *(_TIERS[p] for p in used if p in _TIERS)))

    def share(self, placement: Placement) -> float:
        """The fraction of the tiles that is there; what is not RECOMPUTE is MEMO's alpha."""
        return self.tiles.get(placement, 0) / self.tile_count


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapPlan:
    """Every layer in forward order; all have the same number of tiles, of `tile_tokens` local
    tokens each but for the last, or one tile where they run whole. `in_flight_bytes`: what copies
    may hold of the device while they are under way, and, where the SSD is used, as much of the
    host. `stored`: for attention's backward, where ranks share a sequence; BEFORE where none do.
    """

    tile_tokens: int
    in_flight_bytes: int
    layers: tuple[LayerSwap, ...]
    stored: Stored = Stored.BEFORE

    def __post_init__(self) -> None:
        check_at_least(1, tile_tokens=self.tile_tokens)
        check_at_least(0, in_flight_bytes=self.in_flight_bytes)
        if not self.layers:
            raise ValueError("layers is empty: takes one layer or more")
        first = next((i for i, layer in enumerate(self.layers) if layer.tile_count > 1), 0)
        for index, layer in enumerate(self.layers):
            if layer.tile_count not in (1, self.layers[first].tile_count):
                raise ValueError(
                    f"layers[{index}].tiles add up to {layer.tile_count}: takes "
                    f"{self.layers[first].tile_count}, as in layers[{first}], or 1"
                )
