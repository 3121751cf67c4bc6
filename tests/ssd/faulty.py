"""An engine that fails as it is told, before the real one that does the rest.

Scope: faults that a test can't cause on a real disk. Each attempt uses up one entry of the script:
None passes it on; when the script is over, all pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ssd.contracts import Attempt, Engine, Piece


@dataclass(frozen=True)
class Fail:
    """The attempt moves nothing, and ends with this errno."""

    errno: int


@dataclass(frozen=True)
class Short:
    """The attempt moves only so many bytes, as a real transfer of that length."""

    size_bytes: int


@dataclass(frozen=True)
class Stall:
    """The attempt reaches the disk so much later."""

    seconds: float


@dataclass(frozen=True)
class Claim:
    """The attempt moves all, and says that it moved only so many bytes."""

    size_bytes: int


Fault = Fail | Short | Stall | Claim | None


class FaultyEngine:
    """See the module's docstring, and `ssd.contracts.Engine`."""

    name = "faulty"

    def __init__(self, engine: Engine, script: Iterable[Fault]) -> None:
        self.engine = engine
        self.attempts = 0
        self._script = iter(script)
        self._lock = threading.Lock()

    @property
    def depth(self) -> int:
        return self.engine.depth

    def start(self, attempt: Attempt) -> None:
        with self._lock:
            self.attempts += 1
            fault = next(self._script, None)
        match fault:
            case None:
                self.engine.start(attempt)
            case Fail(errno):
                threading.Timer(0, attempt.end, [-errno]).start()
            case Short(0):
                threading.Timer(0, attempt.end, [0]).start()
            case Short(size_bytes):
                self.engine.start(_shortened(attempt, size_bytes))
            case Claim(size_bytes):
                self.engine.start(_claiming(attempt, size_bytes))
            case Stall(seconds):
                threading.Timer(seconds, self.engine.start, [attempt]).start()

    def fix(self, buffers: Sequence[memoryview]) -> bool:
        return self.engine.fix(buffers)

    def close(self) -> None:
        self.engine.close()


def _shortened(attempt: Attempt, size_bytes: int) -> Attempt:
    piece = attempt.piece
    part = Piece(piece.file, piece.offset_bytes, piece.buffer[:size_bytes])
    return Attempt(attempt.operation, part, attempt.end)


def _claiming(attempt: Attempt, size_bytes: int) -> Attempt:
    return Attempt(attempt.operation, attempt.piece, lambda _: attempt.end(size_bytes))
