"""The pool over the double: what is free holds NaN.

Scope: telling the double what is given back.
"""

from __future__ import annotations

from collections.abc import Sequence

from offload.host_pool import ALIGNMENT_BYTES, Extent, HostPool
from offload.streams import Event
from tests.races.double import DoubleStreams
from tests.races.queues import DoubleEvent


class PoisoningPool(HostPool):
    """A pool whose free bytes are NaN as soon as the events have passed with which they were given
    back, and which looks whether those are enough.
    """

    def __init__(
        self,
        streams: DoubleStreams,
        *,
        limit_bytes: int | None = None,
        alignment_bytes: int = ALIGNMENT_BYTES,
    ) -> None:
        super().__init__(
            streams.host_memory, limit_bytes=limit_bytes, alignment_bytes=alignment_bytes
        )
        self._streams = streams

    def give_back(self, extent: Extent, events: Sequence[Event]) -> None:
        passed = [event for event in events if isinstance(event, DoubleEvent)]
        assert len(passed) == len(events)
        self._streams.gave_back(extent.memory, passed)
        super().give_back(extent, events)
