"""What the parts of sequence parallelism say to each other: who shares a sequence, who holds which
tokens and heads, and what is kept for backward.

Scope: plain data. How shares are chosen stands in `shares.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from torch import distributed as dist

from memo.attention.masks import Range


class Stored(StrEnum):
    """What attention's backward finds in the store beside the log-sum-exp, which lies there as
    attention made it, for a rank's heads and all tokens.

    `BEFORE`: nothing; q, k, v and o, which a layer has for its own tokens, are exchanged again.
    `OUTPUT`: o of a rank's heads and all tokens, as many bytes as the layer's own o holds.
    `AFTER`: q, k, v and o; backward exchanges nothing but gradients.
    """

    BEFORE = "before"
    OUTPUT = "output"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The ranks that share a sequence, `size` of them, counted in `process_group` (None: all)."""

    process_group: dist.ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, process_group: dist.ProcessGroup | None = None) -> SequenceGroup:
        """The group as `torch.distributed` knows it, or a device mesh (`mesh.get_group(name)`).

        Raises:
            ValueError: for a process group that this rank is no part of.
        """
        rank, size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if rank < 0:
            raise ValueError("process_group: takes a group that this rank is in")
        return cls(process_group, rank, size)

    def __deepcopy__(self, _: dict[int, object]) -> SequenceGroup:
        """Itself: a copy of a model talks to the same ranks."""
        return self

    def global_rank(self, rank: int) -> int:
        """What the whole job calls the group's `rank`."""
        if self.process_group is None:
            return rank
        return dist.get_global_rank(self.process_group, rank)


@dataclass(frozen=True, slots=True)
class TokenShares:
    """Who holds which tokens: rank r has `[bounds[r], bounds[r + 1])`, which may be none."""

    bounds: tuple[int, ...]

    @property
    def total_tokens(self) -> int:
        return self.bounds[-1]

    @property
    def ranks(self) -> int:
        return len(self.bounds) - 1

    def of(self, rank: int) -> Range:
        """The tokens of a rank."""
        return self.bounds[rank], self.bounds[rank + 1]

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many tokens each rank has."""
        return tuple(stop - start for start, stop in pairwise(self.bounds))


@dataclass(frozen=True, slots=True)
class HeadRun:
    """Heads of one rank that kernels take in one call: as many query heads for every kv head."""

    q: Range
    kv: Range


@dataclass(frozen=True, slots=True)
class HeadShares:
    """Who computes which heads: rank r has query heads `q[r]`, and those kv heads that they use,
    `kv[r]`. `groups` query heads use one kv head.
    """

    q: tuple[Range, ...]
    kv: tuple[Range, ...]
    groups: int

    @property
    def kv_copies(self) -> int:
        """kv heads over all ranks, a replicated one as often as it is held."""
        return sum(stop - start for start, stop in self.kv)


@dataclass(frozen=True, slots=True)
class Axes:
    """Two axes over a sequence group: `rows[i]` are the ranks, ascending, that exchange heads for
    tokens with one another; ranks at one place of their rows have the same heads, and pass k and v
    round.
    """

    rows: tuple[tuple[int, ...], ...]

    def place(self, rank: int) -> tuple[int, int]:
        """The row of a rank, and its place in it."""
        row = next(index for index, members in enumerate(self.rows) if rank in members)
        return row, self.rows[row].index(rank)
