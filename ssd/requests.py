"""Requests: what a caller holds while one extent is on its way.

Scope: asking, waiting, and the times. What drives them is in `ssd.request_queue`.
"""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import dataclass, field

from ssd.contracts import Operation, SpillError, SpillWarning


@dataclass(slots=True)
class Pulse:
    """When the disk last answered, and the silence after which a waiter is told. `places` are the
    directories.
    """

    stall_s: float
    places: str = ""
    beat_s: float = field(default_factory=time.perf_counter)


class Request:
    """A transfer under way. Times are of `time.perf_counter`; `started_s` is when its first piece
    was taken up. `is_told`: somebody has waited, and got the error.
    """

    def __init__(self, operation: Operation, size_bytes: int, pulse: Pulse) -> None:
        self.operation = operation
        self.size_bytes = size_bytes
        self.submitted_s = time.perf_counter()
        self.started_s: float | None = None
        self.finished_s: float | None = None
        self.error: SpillError | None = None
        self.is_told = False
        self._pulse = pulse
        self._done = threading.Event()

    def is_done(self) -> bool:
        """Whether it is over, well or not."""
        return self._done.is_set()

    def wait(self) -> None:
        """Until it is done, however long a disk stalls; a stall is told once.

        Raises:
            SpillError: when it failed.
        """
        self.settle()
        if self.error is not None:
            self.is_told = True
            raise self.error

    def settle(self) -> None:
        """Until it is done, well or not."""
        is_told = False
        while not self._done.wait(self._pulse.stall_s):
            silent_s = time.perf_counter() - max(self._pulse.beat_s, self.submitted_s)
            if silent_s >= self._pulse.stall_s and not is_told:
                is_told = True
                self._warn_of_stall(silent_s)

    def finish(self, error: SpillError | None) -> None:
        """For the queue: it is over."""
        self.error = error
        self.finished_s = time.perf_counter()
        self._done.set()

    def _warn_of_stall(self, silent_s: float) -> None:
        warnings.warn(
            f"no answer from {self._pulse.places} for {silent_s:.1f} s to a {self.operation}; "
            "still waiting: see the kernel's log (dmesg) if it lasts",
            SpillWarning,
            stacklevel=4,
        )
