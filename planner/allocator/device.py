"""The device under the allocator: how much memory there is, and at which addresses.

Scope: counting bytes, and handing out addresses. Real ones are the driver's secret; here each new
one lies above those before it, which decides between free blocks of one size only.
"""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_ADDRESS = 1 << 40
_ADDRESS_UNIT_BYTES = 2 << 20
_UNBOUNDED_RANGE_BYTES = 1 << 48


@dataclass(frozen=True, slots=True, eq=False)
class AddressRange:
    """Addresses that an expandable segment reserved, to be mapped by the granule."""

    start: int
    size_bytes: int
    granule_bytes: int

    def down(self, address: int) -> int:
        """The granule's edge at or below."""
        return address - (address - self.start) % self.granule_bytes

    def up(self, address: int) -> int:
        """The granule's edge at or above."""
        return address + (self.start - address) % self.granule_bytes


@dataclass(slots=True, eq=False)
class Device:
    """`capacity_bytes` None: without bounds."""

    capacity_bytes: int | None
    used_bytes: int = 0
    _next_address: int = _FIRST_ADDRESS

    @property
    def free_bytes(self) -> int | None:
        return None if self.capacity_bytes is None else self.capacity_bytes - self.used_bytes

    def take(self, size_bytes: int) -> bool:
        """Whether it had them."""
        if self.free_bytes is not None and size_bytes > self.free_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes

    def new_address(self, size_bytes: int) -> int:
        address = self._next_address
        self._next_address += -(-size_bytes // _ADDRESS_UNIT_BYTES) * _ADDRESS_UNIT_BYTES
        return address

    def reserve(self, granule_bytes: int) -> AddressRange:
        """Addresses for 9/8 of the device, as torch reserves them for an expandable segment."""
        if self.capacity_bytes is None:
            size_bytes = _UNBOUNDED_RANGE_BYTES
        else:
            size_bytes = self.capacity_bytes + self.capacity_bytes // 8
        size_bytes = -(-size_bytes // granule_bytes) * granule_bytes
        return AddressRange(self.new_address(size_bytes), size_bytes, granule_bytes)
