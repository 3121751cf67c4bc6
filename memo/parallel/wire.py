"""The wire: what ranks of a sequence group send each other, every byte counted.

Scope: one all-to-all with uneven parts, one step round a ring, and small numbers gathered, on
backends that have `all_to_all_single` and point-to-point (NCCL, gloo). Tensors travel as bytes, so
that a backend need not know their dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor
from torch import distributed as dist

from memo.parallel.contracts import SequenceGroup


class Transport(StrEnum):
    """How bytes travel."""

    ALL_TO_ALL = "all-to-all"
    RING = "ring"
    GATHER = "gather"


@dataclass(slots=True)
class WireCount:
    """Calls, and bytes that this rank sent to others; what stays with it is not counted."""

    calls: int = 0
    sent_bytes: int = 0

    def add(self, sent_bytes: int) -> None:
        self.calls += 1
        self.sent_bytes += sent_bytes


@dataclass(slots=True)
class Transit:
    """Tensors under way. `sent` is held until it is over."""

    works: list[dist.Work]
    sent: Tensor
    received: Tensor

    def wait(self) -> Tensor:
        """What has arrived."""
        for work in self.works:
            work.wait()
        return self.received


@dataclass(slots=True)
class Wire:
    """A sequence group's collectives. Every call is one that all ranks make, in the same order."""

    group: SequenceGroup
    counts: dict[Transport, WireCount] = field(
        default_factory=lambda: {transport: WireCount() for transport in Transport}
    )

    def all_to_all(
        self, sent: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Transit:
        """Begin to send `send_counts[r]` elements of flat `sent` to every rank r; what comes from
        each will lie one behind another.
        """
        size = sent.element_size()
        received = sent.new_empty(sum(receive_counts))
        work = dist.all_to_all_single(
            received.view(torch.uint8),
            sent.view(torch.uint8),
            [count * size for count in receive_counts],
            [count * size for count in send_counts],
            group=self.group.process_group,
            async_op=True,
        )
        own = send_counts[self.group.rank]
        self.counts[Transport.ALL_TO_ALL].add((sent.numel() - own) * size)
        return Transit([] if work is None else [work], sent, received)

    def shift(self, sent: Tensor, count: int, *, to: int, source: int) -> Transit:
        """Begin to send flat `sent` to the rank `to`, and to receive `count` elements from
        `source`.
        """
        received = sent.new_empty(count)
        group = self.group.process_group
        ways = (dist.isend, sent, to), (dist.irecv, received, source)
        operations = [
            dist.P2POp(way, tensor.view(torch.uint8), self.group.global_rank(peer), group)
            for way, tensor, peer in ways
            if tensor.numel()
        ]
        works = dist.batch_isend_irecv(operations) if operations else []
        self.counts[Transport.RING].add(sent.numel() * sent.element_size())
        return Transit(works, sent, received)

    def gather(self, numbers: Tensor) -> Tensor:
        """`numbers` of every rank, [ranks, ...]; for a few of them."""
        gathered = [torch.empty_like(numbers) for _ in range(self.group.size)]
        dist.all_gather(gathered, numbers.contiguous(), group=self.group.process_group)
        others = self.group.size - 1
        self.counts[Transport.GATHER].add(others * numbers.numel() * numbers.element_size())
        return torch.stack(gathered)
