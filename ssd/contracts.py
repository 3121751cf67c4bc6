"""What the disk's parts say to each other: errors, files, pieces, attempts, and the engine's
protocol.

Scope: plain data and one protocol, no algorithm. `ssd` knows bytes, memoryviews, extents and files,
and nothing of tensors or training.

A *request* moves one extent of the spool. It is cut into *pieces*, each a stretch of one file. An
engine makes *attempts* at a piece: one read or write each, which may move less than was asked or
fail; trying again is the queue's business, not the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class SpillError(RuntimeError):
    """What the disk can't do as asked; the message names the directory, the operation, the errno
    and what to do. What a failed read should have brought is never handed out.
    """

    def __init__(
        self, message: str, *, directory: Path, operation: str, errno: int | None = None
    ) -> None:
        super().__init__(message)
        self.directory = directory
        self.operation = operation
        self.errno = errno


class SpillWarning(UserWarning):
    """The disk runs in another way than one would expect; the message says which and why."""


class Operation(StrEnum):
    READ = "read"
    WRITE = "write"


class EngineKind(StrEnum):
    """`AUTO`: io_uring when a real operation through it succeeds, else threads."""

    AUTO = "auto"
    URING = "io_uring"
    THREADS = "threads"


class Verify(StrEnum):
    """What is checked of the bytes that come back."""

    NONE = "none"
    CHECKSUM = "checksum"


@dataclass(frozen=True, slots=True)
class Alignment:
    """What direct I/O asks of a buffer's address, and of offsets and lengths in the file. 1, 1:
    nothing.
    """

    memory_bytes: int = 1
    offset_bytes: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class SpoolFile:
    """An open file without a name, or a block device. `directory` is where errors say it lies."""

    fd: int
    directory: Path
    size_bytes: int
    is_direct: bool = False
    alignment: Alignment = Alignment()


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """Bytes `[start, start + size_bytes)` of the spool."""

    start: int
    size_bytes: int

    @property
    def stop(self) -> int:
        return self.start + self.size_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A stretch of one file, and the memory that it is written from or read into."""

    file: SpoolFile
    offset_bytes: int
    buffer: memoryview


@dataclass(slots=True, eq=False)
class Attempt:
    """One read or write. `end` is called once, from any thread, with the bytes moved or with minus
    the errno; it neither blocks nor raises. `started_s`: when a thread or the kernel took it up.
    """

    operation: Operation
    piece: Piece
    end: Callable[[int], None]
    started_s: float | None = None


class Engine(Protocol):
    """Reads and writes beside the caller. At most `depth` attempts are under way at a time: the
    caller sees to it.
    """

    @property
    def name(self) -> str: ...

    @property
    def depth(self) -> int: ...

    def start(self, attempt: Attempt) -> None:
        """Begin; returns at once, never raises, and holds the buffer until the attempt's end."""

    def fix(self, buffers: Sequence[memoryview]) -> bool:
        """Make these the buffers that the kernel need not pin for each operation, in place of those
        named before; False: not here, and nothing is lost but that.
        """

    def close(self) -> None:
        """Wait for what is under way, and let everything go. Twice is once."""
