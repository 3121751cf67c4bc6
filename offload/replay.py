"""The state that a recomputation must find again: random numbers and autocast.

Scope: capture at forward, restore around each tile. Every tile has a seed of its own, so that a
tile's two runs (up to attention, and to the end) draw the same numbers while no two tiles share
theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from offload.contracts import Tile


@dataclass(frozen=True, slots=True)
class AutocastState:
    """Autocast as it was at forward."""

    device_type: str
    enabled: bool
    dtype: torch.dtype
    cache_enabled: bool

    @classmethod
    def capture(cls, device_type: str) -> AutocastState:
        return cls(
            device_type,
            torch.is_autocast_enabled(device_type),
            torch.get_autocast_dtype(device_type),
            torch.is_autocast_cache_enabled(),
        )

    def restored(self) -> torch.autocast:
        return torch.autocast(
            self.device_type, self.dtype, self.enabled, cache_enabled=self.cache_enabled
        )


def _generators(device: torch.device) -> list[torch.Generator]:
    # A tensor's device always has its index.
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    return generators


_MIX = 0x1E3779B97F4A7C15
"""Any odd-looking number below 2**62 does; this one is from the golden ratio."""


_MOST_TILES = 1 << 20
"""Of a layer. A processor's generator takes 32 bits of a seed, the lowest."""


@dataclass(slots=True)
class Replay:
    """Random numbers and autocast of one layer call.

    `draws` turns true when the first tile's runs were seen to draw random numbers. Until a layer
    draws, the caller's generators are left as they were, so wrapping a model without dropout
    changes no random number of the program; a layer that draws advances the CPU generator by one
    number, and its tiles' seeds follow from that one.

    `salt` tells apart processes that have other tokens of one sequence and generators in one state.
    """

    device: torch.device
    draws: bool = False
    salt: int = 0
    _seed: int = field(init=False)
    _autocast: AutocastState = field(init=False)

    def __post_init__(self) -> None:
        peek = torch.Generator()
        peek.set_state(torch.get_rng_state())
        # Mixed, so as not to be the number that attention's own dropout draws.
        number = int(torch.randint(2**62, (), generator=peek)) ^ _MIX
        self._seed = number + self.salt * _MOST_TILES
        self._autocast = AutocastState.capture(self.device.type)

    @contextmanager
    def first(self, tile: Tile) -> Iterator[None]:
        """Around a tile's runs in forward (whose autocast is the caller's)."""
        generators = _generators(self.device)
        before = [generator.get_state() for generator in generators]
        seeded = [
            generator.manual_seed(self._seed + tile.index).get_state() for generator in generators
        ]
        try:
            yield
            if tile.index == 0 and not self.draws:
                after = [generator.get_state() for generator in generators]
                self.draws = any(not torch.equal(a, b) for a, b in zip(seeded, after, strict=True))
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)

    def advance(self) -> None:
        """Once a layer's forward is over: move the caller's generator on if the layer drew."""
        if self.draws:
            torch.randint(2**62, ())

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Around a whole backward: autocast as it was."""
        with self._autocast.restored():
            yield

    @contextmanager
    def again(self, tile: Tile) -> Iterator[None]:
        """Around a tile's run in backward."""
        if not self.draws:
            yield
            return
        with self.first(tile):
            yield
