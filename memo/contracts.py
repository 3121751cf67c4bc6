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


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """`memo.wrap`'s arguments, checked. `tile_tokens` None: chosen per call from the shapes;
    `in_flight_bytes` None: twice what a layer moves; `host_bytes` None: as much as is asked for.
    """

    tile_tokens: int | None
    fractions: Mapping[Placement, float]
    skeletal: Tier
    tiled_loss: bool
    in_flight_bytes: int | None = None
    host_bytes: int | None = None
    spill: Spill | None = None


@dataclass(frozen=True, slots=True)
class LayerMode:
    """How layers of a class run: tiled, or whole (`reason` says why)."""

    reason: str | None = None

    @property
    def is_tiled(self) -> bool:
        return self.reason is None
