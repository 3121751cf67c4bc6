"""Short programs of stream calls, for tests of the double.

Scope: one that moves tensors away and back, as it should be or with one rule broken, and what its
bytes mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offload.parcels import bytes_of
from offload.streams import Event, Stream
from tests.races.double import DoubleStreams

FLOATS = 6
SIZE_BYTES = FLOATS * 4


def floats_of(memory: Tensor) -> Tensor:
    return memory.view(torch.float32)


def values(start: int) -> Tensor:
    return torch.arange(start, start + FLOATS, dtype=torch.float32)


def is_nan(memory: Tensor) -> bool:
    return bool(floats_of(memory).isnan().all())


class Program:
    """Moves two tensors to the same bytes of the host and back, one after the other, and doubles
    them; keeps every rule but `broken`.
    """

    def __init__(self, double: DoubleStreams, broken: str = "") -> None:
        self.double, self.broken = double, broken
        self.host = double.host_memory(SIZE_BYTES)
        self.sources: dict[int, Tensor] = {}

    def run(self) -> Tensor:
        """Nothing is right in it unless the result is that of `expected`."""
        self.sources = {start: values(start) + 0 for start in (1, 100)}
        ready = self.double.current().record()
        first, landed = self._round_trip(1, ready, "compute's work on the source")
        second, landed = self._round_trip(100, landed, "the last reader of the host bytes")
        self._wait(self.double.current(), landed, "the copy to the landing buffer")
        self.sources.clear()
        return torch.cat([floats_of(first), floats_of(second)]) * 2

    def _round_trip(self, start: int, before: Event, rule: str) -> tuple[Tensor, Event]:
        self._wait(self.double.d2h, before, rule)
        self.double.d2h.copy(self.host, bytes_of(self.sources[start]))
        written = self.double.d2h.record()
        if self.broken == "compute, before it frees the source":
            del self.sources[start]
        return self._land(written)

    def _land(self, written: Event) -> tuple[Tensor, Event]:
        lane, _ = self.double.h2d, values(0) * 2  # work by who had the landing buffer before
        landing = self.double.landing(SIZE_BYTES)
        self._wait(lane, self.double.current().record(), "the landing buffer's last user")
        self._wait(lane, written, "the writer of the host bytes")
        lane.copy(landing, self.host)
        return landing, lane.record()

    def _wait(self, stream: Stream, event: Event, rule: str) -> None:
        if self.broken != rule:
            stream.wait(event)

    @staticmethod
    def expected() -> Tensor:
        return torch.cat([values(1), values(100)]) * 2


RULES = (
    "compute's work on the source",
    "the last reader of the host bytes",
    "the copy to the landing buffer",
    "compute, before it frees the source",
    "the landing buffer's last user",
    "the writer of the host bytes",
)
