"""The second axis: k and v passed round the rows of a group, and their gradients brought home.

Scope: what travels when. A row computes with what it has while the next arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from memo.parallel.ring_pieces import Spans, tokens_of
from memo.parallel.wire import Transit, Wire


@dataclass(frozen=True, slots=True)
class RingAxis:
    """A column of ranks, one of every row, that have the same heads: `members` of the wire's group
    and the `spans` of tokens that their rows hold; this rank's row is number `row`.
    """

    wire: Wire
    members: tuple[int, ...]
    spans: tuple[Spans, ...]
    row: int

    @property
    def size(self) -> int:
        return len(self.members)

    def rotate(self, own: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every row's tensor with the number of the row, its own first. `own`: [tokens, ...],
        contiguous.
        """
        held = own
        for hop in range(self.size):
            coming = self._pass_on(held, hop) if hop + 1 < self.size else None
            yield self._row_at(hop), held
            if coming is not None:
                tokens = tokens_of(self.spans[self._row_at(hop + 1)])
                held = coming.wait().view(tokens, *own.shape[1:])

    def rotate_with_gradients(
        self, own: Tensor, gradient: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """The sum over rows of `gradient(row, tensor)` for this row's tensor, of its shape, in
        whatever dtype that has.
        """
        mine: Tensor | None = None
        coming: Transit | None = None
        for hop, (row, held) in enumerate(self.rotate(own)):
            part = gradient(row, held)
            if hop == 0:
                mine = part  # added last, so that a gradient travels one hop less
                continue
            if coming is not None:
                part += coming.wait().view_as(part)
            coming = self._pass_on(part, hop)
        assert mine is not None
        if coming is not None:
            mine += coming.wait().view_as(mine)
        return mine

    def _row_at(self, hop: int) -> int:
        """The row whose tensor is here after so many hops."""
        return (self.row - hop) % self.size

    def _pass_on(self, held: Tensor, hop: int) -> Transit:
        coming = tokens_of(self.spans[self._row_at(hop + 1)])
        return self.wire.shift(
            held.flatten(),
            coming * _width(held),
            to=self.members[(self.row + 1) % self.size],
            source=self.members[(self.row - 1) % self.size],
        )


def _width(held: Tensor) -> int:
    """Elements of one token."""
    return torch.Size(held.shape[1:]).numel()
