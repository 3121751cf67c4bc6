"""How many bytes copies may hold at a time.

Scope: one number that follows what layers turn out to move.
"""

from __future__ import annotations

from dataclasses import dataclass

ROUNDING_BUFFERS = 2
"""MEMO (section 4.2): one buffer is copied while compute fills the other."""


@dataclass(slots=True)
class Budget:
    """Of bytes in flight. `in_flight_bytes` None: two rounding buffers, each of what the largest
    group (a layer's parcels) takes, the one that is still open included.
    """

    in_flight_bytes: int | None = None
    largest_group_bytes: int = 0
    open_group_bytes: int = 0

    def limit_bytes(self, size_bytes: int = 0) -> int:
        """For what is there and `size_bytes` more."""
        if self.in_flight_bytes is not None:
            return self.in_flight_bytes
        group_bytes = max(self.largest_group_bytes, self.open_group_bytes, size_bytes)
        return ROUNDING_BUFFERS * group_bytes
