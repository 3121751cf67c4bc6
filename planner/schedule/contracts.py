"""What a simulated step is: spans, sums, and bytes over time.

Scope: plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.contracts import Lane, Tier


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in seconds since the step began. `lane` None: compute runs `name`; with
    `is_wait` compute waits for the lane.
    """

    lane: Lane | None
    name: str
    start_s: float
    stop_s: float
    size_bytes: int = 0
    is_wait: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A step of one rank. By lane: seconds that compute waited for it (*exposed*), that it copied,
    and bytes moved. `memory`: by tier, the bytes that are there from each time on (what is resident
    included), in order. `forwarded_bytes` were asked for while they were still on the device.
    """

    step_s: float
    compute_s: float
    recompute_s: float
    exposed_s: Mapping[Lane, float]
    busy_s: Mapping[Lane, float]
    moved_bytes: Mapping[Lane, int]
    forwarded_bytes: int
    in_flight_peak_bytes: int
    mfu: float
    memory: Mapping[Tier, tuple[tuple[float, int], ...]]
    spans: tuple[Span, ...]

    @property
    def peak_bytes(self) -> dict[Tier, int]:
        return {tier: max(size for _, size in line) for tier, line in self.memory.items()}
