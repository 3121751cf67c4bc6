"""Vectors for the ring: where an operation's memory lies, and how long it is.

Scope: one way around the binding. `liburing.Iovec` made of a memoryview holds it for good (found
with 2026.3.30: 192 bytes for each operation, and all the memory under it); made of `bytes` it
holds nothing. So vectors are made of `bytes`, pointed at the memory, and used again. Where the
binding keeps the vector is found out and checked on each.
"""

from __future__ import annotations

import ctypes
import struct

import liburing

_STAND_IN = b"memo's stand-in"
_STAND_IN_START = bytes.__basicsize__ - 1  # of the bytes in their object; the 1 is a final zero
_HEADER_BYTES = object.__basicsize__
_FIELDS = struct.Struct("NN")


class _Entry(ctypes.Structure):
    """The kernel's `struct iovec`."""

    _fields_ = (("start", ctypes.c_size_t), ("size_bytes", ctypes.c_size_t))

    start: int
    size_bytes: int


class Vector:
    """`count` stretches of memory, for one operation at a time. It keeps none of them alive.

    Raises:
        ImportError: when this version of the binding keeps vectors in another way.
    """

    def __init__(self, count: int = 1) -> None:
        self.iovec = liburing.Iovec([_STAND_IN] * count)
        self._entries = _entries_of(self.iovec, count)

    def point(self, index: int, start: int, size_bytes: int) -> None:
        """Let a stretch be `size_bytes` from the address `start` on."""
        entry = self._entries[index]
        entry.start = start
        entry.size_bytes = size_bytes


def _entries_of(iovec: liburing.Iovec, count: int) -> ctypes.Array[_Entry]:
    """The array itself, which the object has behind its header: how many, and where."""
    if type(iovec).__basicsize__ < _HEADER_BYTES + _FIELDS.size:
        raise _unknown()
    content = ctypes.string_at(id(iovec) + _HEADER_BYTES, _FIELDS.size)
    found, start = _FIELDS.unpack(content)
    if found != count or not start:
        raise _unknown()
    entries = (_Entry * count).from_address(start)
    expected = (id(_STAND_IN) + _STAND_IN_START, len(_STAND_IN))
    if any((entry.start, entry.size_bytes) != expected for entry in entries):
        raise _unknown()
    return entries


def _unknown() -> ImportError:
    version = getattr(liburing, "__version__", "?")
    return ImportError(f"version {version} of the package liburing is not known here")
