"""Parcels that come and go in an order that no backward has, over the doubles.

Scope: a random program of the engine's own calls; what must hold is said in the tests. It costs
half of a training step, and meets what one seldom does: parcels that are asked for out of turn, and
dropped while they are on their way.
"""

from __future__ import annotations

from contextlib import nullcontext
from random import Random

import torch
from torch import Tensor

from offload import Tier, Turn
from offload.parcels import Parcel
from tests.races.compute import Compute
from tests.races.harness import Rig

MOVES, MOST_LENT = 90, 16
FLOATS = 250
"""Of the smallest parcel: just below the disk's alignment."""


class Traffic:
    """A program that follows from the seed. `wrong`: what came back other than it was saved."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.wrong: list[Tensor] = []
        self._rig, self._random = rig, Random(f"traffic {seed}")
        self._lent: dict[int, tuple[Parcel, int]] = {}
        self._tiers = [Tier.HOST] if rig.disk is None else [Tier.HOST, Tier.SSD, Tier.SSD]

    def run(self) -> None:
        for number in range(MOVES):
            on_side = self._random.random() < 0.2
            stream = self._rig.streams.user_stream() if on_side else nullcontext()
            with stream, Compute(self._rig.streams):
                self._move(number)
        for parcel, _ in self._lent.values():
            self._rig.host.drop(parcel)
        self._rig.settle()

    def _move(self, number: int) -> None:
        drawn = self._random.random()
        if not self._lent or (drawn < 0.4 and len(self._lent) < MOST_LENT):
            self._save(number)
        elif drawn < 0.8:
            self._load(self._random.choice(list(self._lent)))
        elif drawn < 0.9:
            self._rig.host.drop(self._lent.pop(self._random.choice(list(self._lent)))[0])
        else:
            self._rig.host.close_group()

    def _save(self, number: int) -> None:
        floats = FLOATS * self._random.randint(1, 3)
        tensor = torch.full((floats,), float(number))
        turn, tier = self._random.choice(list(Turn)), self._random.choice(self._tiers)
        self._lent[number] = self._rig.host.save([tensor], turn, tier), floats

    def _load(self, number: int) -> None:
        parcel, floats = self._lent[number]
        (got,) = self._rig.host.load(parcel)
        if not torch.equal(got, torch.full((floats,), float(number))):
            self.wrong.append(got)
