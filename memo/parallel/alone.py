"""One rank without the others: what it would receive is a copy of what it sends.

Scope: `LoneWire`, which stands in for a sequence group's wire where one process is to do one rank's
work: to trace it on fake tensors, or to measure its memory and compute on a machine with one
device. Sizes, calls and counts are those among ranks; values are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memo.parallel.contracts import SequenceGroup
from memo.parallel.wire import Transit, Transport, Wire


@dataclass(slots=True)
class LoneWire(Wire):
    """A wire whose collectives are local copies; no process group is needed."""

    @classmethod
    def of(cls, rank: int, ranks: int) -> LoneWire:
        """The wire of `rank` of `ranks`.

        Raises:
            ValueError: for a rank that is none of them.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank is {rank}: takes 0 to {ranks - 1}, of {ranks} ranks")
        return cls(SequenceGroup(None, rank, ranks))

    def all_to_all(
        self, sent: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Transit:
        """See `Wire`."""
        received = _like(sent, sum(receive_counts))
        own = send_counts[self.group.rank]
        self.counts[Transport.ALL_TO_ALL].add((sent.numel() - own) * sent.element_size())
        return Transit([], sent, received)

    def shift(self, sent: Tensor, count: int, *, to: int, source: int) -> Transit:
        """See `Wire`."""
        self.counts[Transport.RING].add(sent.numel() * sent.element_size())
        return Transit([], sent, _like(sent, count))

    def gather(self, numbers: Tensor) -> Tensor:
        """See `Wire`."""
        others = self.group.size - 1
        self.counts[Transport.GATHER].add(others * numbers.numel() * numbers.element_size())
        return torch.stack([numbers] * self.group.size)


def _like(sent: Tensor, count: int) -> Tensor:
    """So many elements: `sent` over and over, as arbitrary bytes may be slow numbers."""
    received = sent.new_empty(count)
    if not sent.numel():
        return received.zero_()
    for start in range(0, count, sent.numel()):
        part = received[start : start + sent.numel()]
        part.copy_(sent[: part.numel()])
    return received
