"""What a wrapped model is told and what it is found to be: options, and how each layer class runs.

Scope: plain data; what a user passed to `memo.wrap` is checked in `options.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offload import Placement, Tier

PlacementLike = str | Mapping[str, float]
"""One placement for all tiles, or fractions of the tiles by placement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spill:
    """Where and how the SSD tier writes. `size_bytes` None: as much as it needs; `raw`: the
    directories are block devices; `verify`: "none" or "checksum".
    """

    directories: tuple[Path, ...]
    size_bytes: int | None = None
    verify: str = "none"
    raw: bool = False


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """One layer: the fractions of its tiles by placement, and the tiers of its x and of its o."""

    fractions: Mapping[Placement, float]
    x: Tier
    o: Tier


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCalls:
    """What a plan was made for: `batch` sequences of `tokens` each, over all ranks that share one.
    `layers` are the placements of all layers in forward order; `ssd_bytes` are what they need of
    the disks.
    """

    tokens: int
    batch: int
    layers: tuple[LayerPlacement, ...]
    ssd_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """`memo.wrap`'s arguments, checked. `tile_tokens` None: chosen per call from the shapes;
    `in_flight_bytes` None: twice what a layer moves; `host_bytes` None: as much as is asked for.
    `planned` None: `fractions` and `skeletal` are every layer's; else they are nobody's.
    """

    tile_tokens: int | None
    fractions: Mapping[Placement, float]
    skeletal: Tier
    tiled_loss: bool
    in_flight_bytes: int | None = None
    host_bytes: int | None = None
    spill: Spill | None = None
    planned: PlannedCalls | None = None

    @property
    def everywhere(self) -> LayerPlacement:
        """Every layer's, without a plan."""
        return LayerPlacement(self.fractions, self.skeletal, self.skeletal)

    @property
    def tiers(self) -> frozenset[Tier]:
        """Where anything is put."""
        layers = (self.everywhere,) if self.planned is None else self.planned.layers
        tiles = {placement.tier for layer in layers for placement in layer.fractions}
        skeletal = {tier for layer in layers for tier in (layer.x, layer.o)}
        return frozenset({*(tier for tier in tiles if tier), *skeletal})


@dataclass(frozen=True, slots=True)
class LayerMode:
    """How layers of a class run: tiled, or whole (`reason` says why)."""

    reason: str | None = None

    @property
    def is_tiled(self) -> bool:
        return self.reason is None
