"""What a wrapped model is told and what it is found to be: options, and how each layer class runs.

Scope: plain data, and the checking of what a user passed to `memo.wrap`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from offload import Placement, Tier

PlacementLike = str | Mapping[str, float]
"""One placement for all tiles, or fractions of the tiles by placement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """`memo.wrap`'s arguments, checked. `tile_tokens` None: chosen per call from the shapes;
    `in_flight_bytes` None: twice what a layer moves.
    """

    tile_tokens: int | None
    fractions: Mapping[Placement, float]
    skeletal: Tier
    tiled_loss: bool
    in_flight_bytes: int | None = None

    @classmethod
    def checked(
        cls,
        *,
        tile_tokens: int | Literal["auto"],
        placement: PlacementLike,
        skeletal: str,
        tiled_loss: bool,
        in_flight_bytes: int | None = None,
    ) -> Options:
        """Raises `ValueError` that names the argument, what it got and what it takes."""
        return cls(
            tile_tokens=_tile_tokens(tile_tokens),
            fractions=_fractions(placement),
            skeletal=_skeletal(skeletal),
            tiled_loss=_flag("tiled_loss", tiled_loss),
            in_flight_bytes=_in_flight_bytes(in_flight_bytes),
        )


@dataclass(frozen=True, slots=True)
class LayerMode:
    """How layers of a class run: tiled, or whole (`reason` says why)."""

    reason: str | None = None

    @property
    def is_tiled(self) -> bool:
        return self.reason is None


def _tile_tokens(value: object) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"tile_tokens={value!r}: takes 'auto' or a positive number of tokens")
    return value


def _in_flight_bytes(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"in_flight_bytes={value!r}: takes None or a number of bytes from 0 on")
    return value


def _fractions(value: object) -> dict[Placement, float]:
    example = "{'keep': 0.25, 'recompute': 0.75}"
    takes = f"takes one of {_names(Placement)}, or fractions of the tiles such as {example}"
    if isinstance(value, str):
        if value not in _values(Placement):
            raise ValueError(f"placement={value!r}: {takes}")
        return {Placement(value): 1.0}
    if not isinstance(value, Mapping) or not value or not set(value) <= set(_values(Placement)):
        raise ValueError(f"placement={value!r}: {takes}")
    fractions = {Placement(name): _fraction(name, share) for name, share in value.items()}
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"placement={dict(value)!r}: fractions must sum to 1")
    return {placement: share for placement, share in fractions.items() if share}


def _fraction(name: str, share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"placement[{name!r}]={share!r}: takes a fraction from 0 to 1")
    return float(share)


def _skeletal(value: object) -> Tier:
    names = {"keep": Tier.DEVICE, "host": Tier.HOST}
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"skeletal={value!r}: takes one of {', '.join(map(repr, names))}")
    return names[value]


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: takes True or False")
    return value


def _values(kind: type[Placement]) -> list[str]:
    return [member.value for member in kind]


def _names(kind: type[Placement]) -> str:
    return ", ".join(repr(name) for name in _values(kind))
