"""What the allocator's parts share: settings, device, pools and counts.

Scope: bookkeeping; every rule is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.allocator.blocks import Block, Pool
from planner.allocator.config import AllocatorConfig
from planner.allocator.contracts import Gauge, Usage
from planner.allocator.device import AddressRange, Device
from planner.allocator.sizes import SMALL_BYTES


@dataclass(slots=True)
class State:
    """`live` are blocks handed out, by id; `waiting` are freed ones that streams still use."""

    config: AllocatorConfig
    device: Device
    small: Pool = field(default_factory=lambda: Pool(is_small=True))
    large: Pool = field(default_factory=lambda: Pool(is_small=False))
    live: dict[int, Block] = field(default_factory=dict)
    waiting: list[Block] = field(default_factory=list)
    expandable: list[AddressRange] = field(default_factory=list)
    reserved: Gauge = field(default_factory=Gauge)
    allocated: Gauge = field(default_factory=Gauge)
    active: Gauge = field(default_factory=Gauge)
    requested: Gauge = field(default_factory=Gauge)
    segments: Gauge = field(default_factory=Gauge)

    def pool_of(self, block_bytes: int) -> Pool:
        return self.small if block_bytes <= SMALL_BYTES else self.large

    @property
    def allowed_bytes(self) -> int | None:
        """What the process may reserve: its fraction, None without one."""
        if self.config.memory_fraction == 1:
            return None
        assert self.device.capacity_bytes is not None
        return int(self.config.memory_fraction * self.device.capacity_bytes)

    @property
    def usage(self) -> Usage:
        return Usage(self.reserved, self.allocated, self.active, self.requested, self.segments)

    def reserve(self, size_bytes: int) -> bool:
        """Whether the device had them."""
        if not self.device.take(size_bytes):
            return False
        self.reserved = self.reserved.plus(size_bytes)
        return True

    def unreserve(self, size_bytes: int) -> None:
        self.device.give_back(size_bytes)
        self.reserved = self.reserved.plus(-size_bytes)

    def count_segment(self, change: int) -> None:
        self.segments = self.segments.plus(change)

    def hand_out(self, block: Block, owner_id: int, requested_bytes: int) -> None:
        block.is_allocated = True
        block.owner_id, block.requested_bytes = owner_id, requested_bytes
        self.live[owner_id] = block
        self.allocated = self.allocated.plus(block.size_bytes)
        self.active = self.active.plus(block.size_bytes)
        self.requested = self.requested.plus(requested_bytes)

    def take_back(self, block: Block) -> None:
        """It is freed; streams may still use it."""
        block.is_allocated = False
        self.allocated = self.allocated.plus(-block.size_bytes)

    def deactivate(self, block: Block) -> None:
        """No stream uses it any more."""
        self.active = self.active.plus(-block.size_bytes)
        self.requested = self.requested.plus(-block.requested_bytes)
        block.owner_id, block.requested_bytes = None, 0
