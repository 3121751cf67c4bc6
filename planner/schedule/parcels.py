"""What is moved together, and where it is.

Scope: the state of parcels, as the runtime has it; `transfers.py` and `staging.py` change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from planner.contracts import Tier
from planner.schedule.lanes import QueuedCopy


class Turn(IntEnum):
    """When, in a layer's backward, a parcel is wanted: the order in which they are brought back."""

    LAYER = 0
    POST = 1
    CORE = 2
    PRE = 3


class State(Enum):
    """WRITING: its tensors are still held on the device; STORED: they are not; LANDING: on its way
    back, and not asked for yet; GONE: nobody wants it any more.
    """

    WRITING = auto()
    STORED = auto()
    LANDING = auto()
    GONE = auto()


@dataclass(slots=True, eq=False)
class Parcel:
    """Bytes of one group (a layer) that are moved together; `written_s`: when they are on the host.

    `place`: in the order in which backward wants them. `is_counted`: whether the device's memory
    counts the held tensors (those that live with their layer are counted there, until it is over).
    Of the SSD tier: `copy` is the write, `is_here` says whether the host has room for it,
    `fetched_s` when a read that is under way ends.
    """

    group: int
    turn: Turn
    tier: Tier
    size_bytes: int
    written_s: float
    is_counted: bool
    place: int = 0
    state: State = State.WRITING
    landed_s: float = 0.0
    copy: QueuedCopy | None = None
    is_here: bool = True
    fetched_s: float | None = None
    is_on_disk: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether its bytes are on the host, not on their way to it from the disk."""
        return self.is_here and self.fetched_s is None
