"""Streams and events: what every copy between tiers goes through.

Scope: the protocol, and which implementation serves a device. `cuda.py` has CUDA's streams,
`threads.py` those of a plain CPU (a thread each); the tests have a double that runs copies as late,
and in as bad an order, as the events allow.

The rules that the engine (`transfers.py`) keeps, and the double checks:

- a lane reads a tensor only after it has waited for an event that compute recorded when the tensor
  was done, and writes a buffer only after it has waited for the buffer's last user;
- compute reads a landing buffer only after it has waited for the copy's event;
- whoever holds a tensor that a lane still reads or writes holds it until the stream that would
  reuse its memory has waited for the lane;
- which stream is compute's is asked anew each time, outside of any lane's context.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


class Event(Protocol):
    """A point in a stream's work: everything that was submitted before `record`."""

    def is_done(self) -> bool:
        """Whether the stream has passed the point; never blocks."""

    def synchronize(self) -> None:
        """The calling thread waits: for a disk's lanes, which compute's thread never is in.

        Raises:
            Exception: on a plain CPU, what the work before the event raised.
        """

    def seconds_since(self, earlier: Event) -> float:
        """Between two points that are done, of any two streams of one device."""


class Stream(Protocol):
    """A queue of work, run in order, beside other streams. Equal when they are one queue."""

    def record(self) -> Event:
        """The point after all that was submitted so far."""

    def wait(self, event: Event) -> None:
        """Let what is submitted from here on start after the event. The host does not block, but
        for the compute "stream" of a plain CPU, which is the host itself.

        Raises:
            TransferError: on a plain CPU, when the work before the event failed.
        """

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy bytes: both are uint8 of shape [bytes]. Neither is held: the caller holds both
        until the copy is over.
        """

    def active(self) -> AbstractContextManager[None]:
        """Make this the current stream inside."""


class Streams(Protocol):
    """The streams of one device."""

    @property
    def d2h(self) -> Stream:
        """The lane from the device to the host."""

    @property
    def h2d(self) -> Stream:
        """The lane from the host to the device."""

    def current(self) -> Stream:
        """The current stream of the calling thread: compute's, outside of a lane's `active`."""

    def landing(self, size_bytes: int) -> Tensor:
        """Memory on the device, uint8 [size_bytes], allocated for the current stream: whoever used
        it before has been submitted there, and may not be over.
        """

    def synchronize(self) -> None:
        """Let the host wait for everything on the device; for reports, never within a step."""

    def share(self, memory: Tensor) -> None:
        """The current stream uses memory on the device that was allocated for another one: it must
        not be used again there before the current stream is done with it.
        """

    def host_memory(self, size_bytes: int) -> Tensor:
        """Memory on the host, uint8 [size_bytes], that lanes copy to and from without a stop:
        pinned where there is something to pin it for, and of exactly this size. It is freed with
        the tensor's storage.
        """
