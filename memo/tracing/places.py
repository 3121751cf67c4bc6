"""Which of the ranks that share a sequence is traced, and what it runs inside the exchange.

Scope: shares by the runtime's own functions (`memo.parallel.shares`), the runtime's ring, and a
wire with nobody on it. The exchange around the core stands in `exchanged.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from memo.parallel.alone import LoneWire
from memo.parallel.contracts import Axes, HeadShares, TokenShares
from memo.parallel.partial import PartEnd, PartInputs, part_gradients
from memo.parallel.ring import RingAxis
from memo.parallel.ring_core import RingCore
from memo.parallel.ring_pieces import RingPiece
from memo.parallel.runs import RunsCore
from memo.parallel.shares import heads_degree, runs_of, share_axes, share_heads
from memo.parallel.wire import Transit
from memo.tracing.fused import flash_workspace
from memo.tracing.marks import Listener
from offload import Core, TensorStore
from planner.trace.sampling import STANDS, Sample

Pieces = Callable[[Iterator[RingPiece]], Iterator[RingPiece]]


def few_of_many(recorder: Listener, pieces: Iterator[RingPiece]) -> Iterator[RingPiece]:
    """Of pieces of one shape three, of which the one in the middle stands for all others: rows of
    many ranks have thousands.
    """
    alike: dict[tuple[object, ...], list[RingPiece]] = defaultdict(list)
    for piece in pieces:
        block = piece.block
        queries, keys, behind = block.shape
        is_plain = block.is_open or block.is_square
        alike[block.rows, queries, keys, block.is_open, None if is_plain else behind].append(piece)
    for same in alike.values():
        sample = Sample.of(len(same))
        some = [same[index] for index in sample.indices]
        yield from recorder.repeating(some, sample.times, index=STANDS) if sample.times else some


@dataclass(frozen=True, slots=True)
class Place:
    """The rank with the most to do, of those that share a sequence: at a `place` of its row with as
    many heads as any (of those, in the fewest runs, which take memory one after another), in the
    last row, whose tokens see as many keys as any under a causal mask.
    """

    axes: Axes
    shares: HeadShares
    place: int

    @classmethod
    def of(cls, ranks: int, heads: int, kv_heads: int) -> Place:
        """For calls of so many heads."""
        degree = heads_degree(ranks, heads)
        shares = share_heads(heads, kv_heads, degree)
        sizes = [
            (_size(q), _size(kv), -len(runs_of(shares, place)))
            for place, (q, kv) in enumerate(zip(shares.q, shares.kv, strict=True))
        ]
        return cls(share_axes(ranks, degree), shares, sizes.index(max(sizes)))

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks of its row, which exchange heads for tokens."""
        return self.axes.rows[-1]

    @property
    def degree(self) -> int:
        """How many they are; 1: nothing is exchanged."""
        return len(self.members)

    def shares_of(self, tokens: TokenShares) -> TokenShares:
        """These, where the rank changes places with one that has the most."""
        own, rank = list(tokens.tokens), self.members[self.place]
        most = own.index(max(own))
        own[most], own[rank] = own[rank], own[most]
        return TokenShares((0, *accumulate(own)))

    def core(
        self, core: Core, store: TensorStore, tokens: TokenShares, pieces: Pieces, *, is_cuda: bool
    ) -> Core:
        """What attends its heads of its row's tokens: `core`, or a ring of
        kernels as a device has them, of whose pieces `pieces` says which are run.
        """
        runs = runs_of(self.shares, self.place)
        if len(self.axes.rows) == 1:
            return core if len(runs) == 1 else RunsCore(core, runs)
        if is_cuda:
            return RingCore(self._ring(tokens), store, runs, CudaPart, _with_workspace, pieces)
        return RingCore(self._ring(tokens), store, runs, pieces=pieces)

    def _ring(self, tokens: TokenShares) -> RingAxis:
        rows = self.axes.rows
        column = tuple(members[self.place] for members in rows)
        spans = tuple(tuple(map(tokens.of, members)) for members in rows)
        wire = Nobody.of(column[-1], len(rows) * self.degree)
        return RingAxis(wire, column, spans, len(rows) - 1)


def _size(heads: tuple[int, int]) -> int:
    return heads[1] - heads[0]


class Nobody(LoneWire):
    """A wire on which what would be received is memory alone: a copy would take compute's time."""

    def all_to_all(
        self, sent: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Transit:
        """See `Wire`."""
        return Transit([], sent, sent.new_empty(sum(receive_counts)))

    def shift(self, sent: Tensor, count: int, *, to: int, source: int) -> Transit:
        """See `Wire`."""
        return Transit([], sent, sent.new_empty(count))


class CudaPart(PartInputs):
    """A part for CUDA's kernels, of fake tensors of the CPU."""

    __slots__ = ()

    @property
    def is_cuda(self) -> bool:
        return True


def _with_workspace(inputs: PartInputs, end: PartEnd) -> tuple[Tensor, Tensor, Tensor]:
    if not inputs.is_fused:
        return part_gradients(inputs, end)
    (rows, heads, queries, size), (_, kv_heads, keys, _) = inputs.q.shape, inputs.k.shape
    shared = kv_heads != heads
    workspace = flash_workspace(
        inputs.q, rows * queries, heads, size, rows * keys, is_shared=shared
    )
    grads = part_gradients(inputs, end)
    del workspace
    return grads
