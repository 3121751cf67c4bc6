"""What the transfer engine asks of a disk: host memory is written away, and brought back.

Scope: the protocol. `spool_disk.py` has a real disk; the tests have a double that writes and reads
as late as it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from offload.contracts import TransferError
from offload.streams import Event


class DiskTransfer(Protocol):
    """One write or read, under way or over."""

    def is_done(self) -> bool:
        """Whether it is over, well or not; never blocks."""

    def settle(self) -> None:
        """The calling thread waits until it is over, well or not."""

    def cancel(self) -> bool:
        """Let it never begin; False when it has begun."""

    @property
    def error(self) -> TransferError | None:
        """Why it failed, once it is done; its cause is chained."""

    @property
    def span_s(self) -> tuple[float, float] | None:
        """When it began and ended, by `time.perf_counter`, once it is done; None when it never
        moved a byte.
        """

    @property
    def waited_s(self) -> float:
        """How long its lane waited for it to begin, once it is done: for what had to come before
        it, and until the disk had room for more.
        """


@dataclass(frozen=True, slots=True, eq=False)
class DiskCopy:
    """Bytes on a disk, or on their way there. `place` is the disk's own."""

    place: Any
    write: DiskTransfer

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be written."""
        return self.write.is_done()

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are there."""
        return self.write.is_done() and self.write.error is None and self.write.span_s is not None


class Disk(Protocol):
    """Room on one or several disks. Memory is uint8 [bytes], on the host, of a multiple of
    `alignment_bytes` and aligned to it, and is neither changed nor given away while a transfer is
    under way.
    """

    @property
    def alignment_bytes(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """The space that is reserved."""

    @property
    def written_bytes(self) -> int:
        """Since it was opened, writes under way and failed ones too: what wears a drive out."""

    def reserve(self, size_bytes: int) -> None:
        """Have so much space in all, as far as it may grow.

        Raises:
            SpillError: when the disk is full.
        """

    def write(self, memory: Tensor, after: Sequence[Event]) -> DiskCopy:
        """Begin to write `memory` once the events have passed; nobody waits.

        Raises:
            SpillError: when there is no space.
        """

    def read(self, copy: DiskCopy, memory: Tensor, after: Sequence[Event]) -> DiskTransfer:
        """Begin to read a whole copy into `memory` once the events have passed; nobody waits."""

    def free(self, copy: DiskCopy) -> None:
        """Give the space back; no transfer is under way there."""

    def fix(self, memories: Sequence[Tensor]) -> None:
        """From now on, most transfers are in these memories."""
