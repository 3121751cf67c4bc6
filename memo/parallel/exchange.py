"""The exchange: heads for tokens, in one all-to-all for any number of tensors.

Scope: DeepSpeed-Ulysses' exchange (arXiv 2309.14509, section 3) with uneven tokens and heads. A
message holds a token's features behind one another, so that what arrives *is* q, k and v: views of
one buffer that nobody has to unpack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from memo.attention.masks import Range
from memo.parallel.wire import Transit, Wire
from offload import MemoError

Owners = Sequence[Range]
"""For every member of a row the heads that it computes."""


@dataclass(frozen=True, slots=True)
class Fused:
    """Several tensors with their features beside one another: `buffer` [tokens, batch, features],
    contiguous, and heads and size of each tensor.
    """

    buffer: Tensor
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Fused:
        """Of [batch, tokens, heads, size] of each; no copy where a single one lies so."""
        flat = [part.transpose(0, 1).flatten(2) for part in parts]
        buffer = flat[0].contiguous() if len(flat) == 1 else torch.cat(flat, dim=-1)
        return cls(buffer, tuple((part.shape[2], part.shape[3]) for part in parts))

    def views(self) -> list[Tensor]:
        """[batch, tokens, heads, size] of each."""
        return list(_unpacked(self.buffer, self.shapes))


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a row sends one another, under way."""

    transit: Transit
    size: tuple[int, int, int]
    shapes: tuple[tuple[int, int], ...]

    def wait(self) -> Fused:
        """What has arrived: all members' tokens, one member's behind another's."""
        return Fused(self.transit.wait().view(self.size), self.shapes)


@dataclass(frozen=True, slots=True)
class HeadsAxis:
    """A row of ranks that exchange heads for tokens: `members` of the wire's group, ascending, with
    as many `tokens` each; this rank is the one at `place`.
    """

    wire: Wire
    members: tuple[int, ...]
    tokens: tuple[int, ...]
    place: int

    def to_heads(
        self,
        parts: list[Tensor],
        owners: Sequence[Owners],
        tokens: Sequence[int] | None = None,
    ) -> Arrival:
        """Begin to exchange all heads of own tokens for own heads of all tokens; parts are [batch,
        tokens, heads, size], and the list is emptied. `tokens`: how many each member sends, if it
        is not all that it has.

        Raises:
            MemoError: for parts of different dtypes.
        """
        tokens = self.tokens if tokens is None else tokens
        _check_dtypes(parts)
        (batch, own), sizes = parts[0].shape[:2], [part.shape[3] for part in parts]
        widths = [
            sum(size * _count(heads[member]) for size, heads in zip(sizes, owners, strict=True))
            for member in range(len(self.members))
        ]
        sent = self._packed(parts, owners, widths)
        parts.clear()
        mine = batch * widths[self.place]
        received = self.wire.all_to_all(
            sent,
            self._by_rank([batch * own * width for width in widths]),
            self._by_rank([count * mine for count in tokens]),
        )
        shapes = tuple(
            (_count(heads[self.place]), size) for heads, size in zip(owners, sizes, strict=True)
        )
        return Arrival(received, (sum(tokens), batch, widths[self.place]), shapes)

    @staticmethod
    def _packed(parts: list[Tensor], owners: Sequence[Owners], widths: list[int]) -> Tensor:
        batch, own = parts[0].shape[:2]
        sent = parts[0].new_empty(batch * own * sum(widths))
        chunks = sent.split([batch * own * width for width in widths])
        for member, chunk in enumerate(chunks):
            ranges = [heads[member] for heads in owners]
            shapes = [(_count(r), part.shape[3]) for r, part in zip(ranges, parts, strict=True)]
            targets = _unpacked(chunk.view(own, batch, widths[member]), shapes)
            for target, part, (start, stop) in zip(targets, parts, ranges, strict=True):
                target.copy_(part[:, :, start:stop])
        return sent

    def to_tokens(
        self,
        parts: list[Tensor],
        owners: Sequence[Owners],
        out: Sequence[Tensor | None] | None = None,
    ) -> list[Tensor]:
        """The way back: own heads of all tokens to all heads of own tokens, [batch, tokens, heads,
        size]. What several members computed for one head is summed, in float32 or wider.

        `parts` is emptied; results are written to `out` where it has a tensor of their shape.

        Raises:
            MemoError: for parts of different dtypes.
        """
        _check_dtypes(parts)
        batch, sizes = parts[0].shape[0], [part.shape[3] for part in parts]
        sent = Fused.of(parts).buffer.flatten()
        parts.clear()
        shapes = [
            [(_count(heads[m]), size) for heads, size in zip(owners, sizes, strict=True)]
            for m in range(len(self.members))
        ]
        widths = [sum(heads * size for heads, size in shape) for shape in shapes]
        own = self.tokens[self.place]
        counts = [batch * own * width for width in widths]
        received = self.wire.all_to_all(
            sent,
            self._by_rank([tokens * batch * widths[self.place] for tokens in self.tokens]),
            self._by_rank(counts),
        )
        chunks = received.wait().split(counts)
        del received, sent  # the transit holds what was sent
        by_member = [
            list(_unpacked(chunk.view(own, batch, width), shape))
            for chunk, width, shape in zip(chunks, widths, shapes, strict=True)
        ]
        targets = out or [None] * len(sizes)
        return [
            _joined(pieces, heads, target)
            for *pieces, heads, target in zip(*by_member, owners, targets, strict=True)
        ]

    def _by_rank(self, counts: Sequence[int]) -> list[int]:
        """Counts by member as counts by rank of the whole group: nothing for other rows."""
        by_rank = [0] * self.wire.group.size
        for member, count in zip(self.members, counts, strict=True):
            by_rank[member] = count
        return by_rank


def _count(heads: Range) -> int:
    return heads[1] - heads[0]


def _check_dtypes(parts: list[Tensor]) -> None:
    dtypes = sorted({str(part.dtype) for part in parts})
    if len(dtypes) > 1:
        raise MemoError(f"attention's tensors have dtypes {dtypes}: an exchange takes one")


def _unpacked(buffer: Tensor, shapes: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Views of [tokens, batch, features] as [batch, tokens, heads, size], by heads and size."""
    for view, shape in zip(
        buffer.split([heads * size for heads, size in shapes], dim=-1), shapes, strict=True
    ):
        yield view.unflatten(-1, shape).transpose(0, 1)


def _joined(pieces: Sequence[Tensor], owners: Owners, target: Tensor | None) -> Tensor:
    """All heads of [batch, tokens, heads, size], of pieces that are heads' ranges."""
    first, heads = pieces[0], max(stop for _, stop in owners)
    shape = (*first.shape[:2], heads, first.shape[3])
    whole = first.new_empty(shape) if target is None or target.shape != shape else target
    if all(before[1] <= after[0] for before, after in pairwise(owners)):
        for piece, (start, stop) in zip(pieces, owners, strict=True):
            whole[:, :, start:stop].copy_(piece)
        return whole
    wide = first.new_zeros(shape, dtype=torch.promote_types(first.dtype, torch.float32))
    for piece, (start, stop) in zip(pieces, owners, strict=True):
        wide[:, :, start:stop].add_(piece)
    return whole.copy_(wide)
