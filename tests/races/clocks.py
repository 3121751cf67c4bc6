"""Who touched which bytes, and whether an event lies between: the clocks of streams, and a ledger.

Scope: happens-before by vector clocks, and memory as ranges of storages that nothing here keeps
alive. What a stream is, and what becomes of a race, is `double.py`'s.

A stream's clock counts its own work, and holds how far it knows the others to be. Work is an
operation that compute ran or a copy that a lane was given; recording, waiting and allocating are
none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

POISON = 0xFF
"""A byte of which NaN is made, in every floating dtype."""


class Clock:
    """A stream's own count under its name, and what it knows of others under theirs."""

    def __init__(self, name: str, work: int = 0) -> None:
        self.name = name
        self.known = {name: work}

    @property
    def work(self) -> int:
        return self.known[self.name]

    def tick(self) -> None:
        self.known[self.name] += 1

    def learn(self, known: Mapping[str, int]) -> None:
        """What comes from here on comes after all that."""
        mine = self.known
        for name, work in known.items():
            if mine.get(name, -1) < work:
                mine[name] = work

    def knows(self, access: Access) -> bool:
        return self.known.get(access.stream, 0) >= access.work


class Victim(Protocol):
    """A lane's copy, which brings nothing of worth once it raced."""

    def spoil(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Access:
    """Bytes `[start, stop)` of a storage, read or written as a stream's `work`-th work; `is_sure`:
    nobody can call it off.
    """

    stream: str
    work: int
    start: int
    stop: int
    is_write: bool
    copy: Victim | None = None
    is_sure: bool = True

    def __str__(self) -> str:
        return f"{self.stream} {'writes' if self.is_write else 'reads'} [{self.start}, {self.stop})"

    def conflicts(self, other: Access) -> bool:
        overlaps = self.start < other.stop and other.start < self.stop
        return overlaps and (self.is_write or other.is_write)

    def replaces(self, old: Access) -> bool:
        """Whether who comes after this one comes after the old one too."""
        covers = self.is_sure and self.start <= old.start and old.stop <= self.stop
        return covers and (self.is_write or (self.stream == old.stream and not old.is_write))


@dataclass(slots=True, eq=False)
class Memory:
    """A storage; `owners` are the clocks of those who wait before it is used again once it is
    free: the stream that it was allocated for and those that share it, or the host for its own.
    """

    ref: StorageWeakRef
    owners: list[Clock]
    accesses: list[Access] = field(default_factory=list)

    def touch(self, access: Access, clock: Clock) -> list[Access]:
        """Note an access; returns the earlier ones that the stream has not waited for."""
        races = [a for a in self.accesses if access.conflicts(a) and not clock.knows(a)]
        self.accesses = [a for a in self.accesses if not access.replaces(a)]
        self.accesses.append(access)
        return races

    def unprotected(self) -> list[Access]:
        """Where a lane was here: accesses that may not be over when the memory is used again."""
        if not any(access.copy for access in self.accesses):
            return []
        return [a for a in self.accesses if not any(owner.knows(a) for owner in self.owners)]


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes `[start, stop)` of a storage: all that a tensor's elements lie in."""

    memory: Memory
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    def storage(self) -> torch.UntypedStorage | None:
        """The storage, if somebody still holds it."""
        return torch.UntypedStorage._new_with_weak_ptr(self.memory.ref.cdata)

    def access(
        self, clock: Clock, *, is_write: bool, copy: Victim | None = None, is_sure: bool = True
    ) -> Access:
        return Access(clock.name, clock.work, self.start, self.stop, is_write, copy, is_sure)

    def unknown_to(self, clock: Clock) -> list[Access]:
        """What was done here, or will be, and may not be over for all that the clock knows."""
        return [a for a in self.memory.accesses if self._meets(a) and not clock.knows(a)]

    def withdraw(self, clock: Clock) -> None:
        """That stream was never here."""
        accesses = self.memory.accesses
        self.memory.accesses = [access for access in accesses if access.stream != clock.name]

    def forget(self, clock: Clock) -> None:
        """What was done here and is over for all that the clock knows."""
        known = [a for a in self.memory.accesses if self._meets(a) and clock.knows(a)]
        self.memory.accesses = [a for a in self.memory.accesses if a not in known]

    def _meets(self, access: Access) -> bool:
        return self.start < access.stop and access.start < self.stop

    def poison(self) -> None:
        storage = self.storage()
        if storage is not None:
            ctypes.memset(storage.data_ptr() + self.start, POISON, self.stop - self.start)


class Ledger:
    """All memory that a stream was seen to touch; `lanes_were_in`: what is looked at when it is
    freed.
    """

    def __init__(self) -> None:
        self.lanes_were_in: dict[Memory, None] = {}
        self._memories: dict[int, Memory] = {}

    def adopt(self, tensor: Tensor, owner: Clock) -> None:
        """The tensor's storage is new to everybody, and the owner's."""
        storage = tensor.untyped_storage()
        self._memories[int(storage._cdata)] = Memory(StorageWeakRef(storage), [owner])

    def region(self, tensor: Tensor, current: Clock) -> Region:
        """Where the tensor lies; a storage that was never seen was allocated just now for the
        current stream.
        """
        size, start = tensor.element_size(), int(tensor.storage_offset())
        memory = self._memory(tensor.untyped_storage(), current)
        return Region(memory, start * size, (start + _reach(tensor)) * size)

    def freed(self) -> Iterator[Access]:
        """What storages that are gone by now were not safe from; each is told once."""
        for memory in list(self.lanes_were_in):
            if memory.ref.expired():
                del self.lanes_were_in[memory]
                yield from memory.unprotected()

    def _memory(self, storage: torch.UntypedStorage, home: Clock) -> Memory:
        key = int(storage._cdata)
        if key not in self._memories:
            self._memories[key] = Memory(StorageWeakRef(storage), [home])
            # Its work until now may be what is in it, or what used it before.
            earlier = Access(home.name, home.work, 0, storage.nbytes(), is_write=True)
            self._memories[key].accesses.append(earlier)
        return self._memories[key]


def _reach(tensor: Tensor) -> int:
    """Elements from its first to its last in memory."""
    if tensor.numel() == 0 or tensor.is_contiguous():
        return tensor.numel()
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((length - 1) * stride for length, stride in pairs)
