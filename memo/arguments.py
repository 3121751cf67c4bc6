"""`memo.wrap`'s arguments together, and what they come to: settings said by hand, or a plan's.

Scope: which arguments go together. What each may be is `options.py`'s; plans are `planning`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import distributed as dist

from memo.contracts import Options
from memo.options import checked_options
from memo.parallel.contracts import Stored
from memo.parallel.groups import checked_sequence_parallel
from memo.predicted import Forecast


class Default(str):
    """An argument that was not given: a plan may take its place, and nobody's word is overruled."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a model is run, who shares a sequence (None: nobody) and what these store for attention's
    backward, and what a plan predicts of it.
    """

    options: Options
    sequence_parallel: int | dist.ProcessGroup | None
    stored: Stored = Stored.BEFORE
    forecast: Forecast | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """As a user passed them."""

    plan: object
    tokens: int | str | None
    batch: int | None
    tile_tokens: object
    placement: object
    skeletal: object
    tiled_loss: object
    in_flight_bytes: object
    host_bytes: object
    spill_dir: object
    spill_bytes: object
    verify: object
    raw: object
    sequence_parallel: object

    def by_hand(self) -> Settings | None:
        """The settings that were said; None: a plan decides.

        Raises:
            ValueError: for an argument that is not understood, or that does not go with others.
        """
        if self.plan is None and self.tokens is None:
            _refuse({"batch": self.batch is not None}, "says how much to plan for: takes tokens")
            options = checked_options(
                tile_tokens=self.tile_tokens,
                placement=self.placement,
                skeletal=self.skeletal,
                tiled_loss=self.tiled_loss,
                in_flight_bytes=self.in_flight_bytes,
                host_bytes=self.host_bytes,
                **self.spill,
            )
            asked = checked_sequence_parallel(self.sequence_parallel)
            return Settings(options=options, sequence_parallel=asked)
        if self.plan is not None:
            planned = {"tokens": self.tokens, "batch": self.batch}
            shared = {"sequence_parallel": self.sequence_parallel}
            given = {name: value is not None for name, value in {**planned, **shared}.items()}
            _refuse({**self._decided, **given}, "beside plan, which decides that: leave it out")
        _refuse(self._decided, "beside tokens, for which that is planned: leave it out")
        return None

    @property
    def spill(self) -> Mapping[str, object]:
        """What says where and how to spill."""
        names = ("spill_dir", "spill_bytes", "verify", "raw")
        return {name: getattr(self, name) for name in names}

    @property
    def _decided(self) -> dict[str, bool]:
        """What any plan decides, and whether it was given all the same."""
        return {
            "tile_tokens": not isinstance(self.tile_tokens, Default),
            "placement": not isinstance(self.placement, Default),
            "skeletal": not isinstance(self.skeletal, Default),
            "in_flight_bytes": self.in_flight_bytes is not None,
            "host_bytes": self.host_bytes is not None,
        }


def _refuse(given: Mapping[str, bool], why: str) -> None:
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise ValueError(f"{', '.join(names)} {why}")
