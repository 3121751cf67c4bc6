"""Cutting a sequence into tiles, spreading placements over them, and joining what tiles made.

Scope: arithmetic and buffers; nothing here runs a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offload.contracts import Placement, Tile


def split_tokens(total_tokens: int, tile_tokens: int) -> tuple[Tile, ...]:
    """Tiles of `tile_tokens` tokens, the last one shorter when the length is no multiple."""
    starts = range(0, total_tokens, tile_tokens)
    return tuple(
        Tile(index, start, min(start + tile_tokens, total_tokens))
        for index, start in enumerate(starts)
    )


def spread_placements(count: int, fractions: Mapping[Placement, float]) -> tuple[Placement, ...]:
    """A placement for each of `count` tiles, every kind as even as its fraction allows.

    The number of tiles of a kind is its fraction rounded by largest remainder, and kinds are
    interleaved, so that copies of some tiles have the compute of others to hide behind. (MEMO's
    alpha, SIGMOD 2025, section 4.1, is the share that is not RECOMPUTE.)
    """
    quotas = _largest_remainder(count, fractions)
    placed: dict[Placement, int] = dict.fromkeys(quotas, 0)
    order = []
    for index in range(count):
        kind = max(quotas, key=lambda k: quotas[k] * (index + 1) / count - placed[k])
        placed[kind] += 1
        order.append(kind)
    return tuple(order)


def _largest_remainder(count: int, fractions: Mapping[Placement, float]) -> dict[Placement, int]:
    quotas = {kind: int(fraction * count) for kind, fraction in fractions.items()}
    by_remainder = sorted(fractions, key=lambda kind: quotas[kind] - fractions[kind] * count)
    for kind in by_remainder[: count - sum(quotas.values())]:
        quotas[kind] += 1
    return {kind: quota for kind, quota in quotas.items() if quota}


def tile_of(tensor: Tensor, tile: Tile, dim: int = 1) -> Tensor:
    """The tile's part, contiguous when tokens are dim 1: a tile then lies in memory alike
    wherever it comes from.
    """
    part = tensor.narrow(dim, tile.start, tile.tokens)
    return part.contiguous() if dim == 1 else part


@dataclass(slots=True)
class Joined:
    """Parts of tiles joined along the token dim into one tensor, allocated with the first part.

    Tokens follow the batch in memory whatever dim they are, so that q, k and v ([batch, heads,
    tokens, head_dim]) lie as projections wrote them and attention kernels like them. One tile that
    is the whole is not copied.
    """

    total_tokens: int
    dim: int = 1
    _whole: Tensor | None = field(init=False, default=None)
    _written: set[int] = field(init=False, default_factory=set)

    @property
    def is_copy(self) -> bool:
        """Whether the whole is memory of its own, not the only tile's."""
        return len(self._written) > 1

    def write(self, tile: Tile, part: Tensor) -> None:
        """Copy a tile's part in; a second write of the same tile replaces the first."""
        if tile.tokens == self.total_tokens and self._whole is None:
            self._whole = part.detach()
        else:
            self._slot(tile, part).copy_(part)
        self._written.add(tile.index)

    def add(self, tile: Tile, part: Tensor) -> None:
        """Add a tile's part to what is there; the first write of a tile is a copy."""
        if tile.index not in self._written:
            self.write(tile, part)
        elif self._whole is not None and tile.tokens == self.total_tokens:
            self._whole = self._whole + part  # what was written may be the caller's own tensor
        else:
            self._slot(tile, part).add_(part)

    def _slot(self, tile: Tile, part: Tensor) -> Tensor:
        if self._whole is None:
            tokens_first = part.detach().movedim(self.dim, 1)
            shape = (tokens_first.shape[0], self.total_tokens, *tokens_first.shape[2:])
            whole = torch.empty(shape, dtype=part.dtype, device=part.device)
            # FSDP2 warns of outputs that are views, and a moved dim makes one even of itself.
            self._whole = whole if self.dim == 1 else whole.movedim(1, self.dim)
        return self._whole.narrow(self.dim, tile.start, tile.tokens)

    def value(self) -> Tensor:
        """The whole; every tile must have been written."""
        assert self._whole is not None, "no tile was written"
        return self._whole

    def value_or_none(self, tiles: tuple[Tile, ...]) -> Tensor | None:
        """The whole with zeros where nothing was written; None when nothing was."""
        if self._whole is None:
            return None
        for tile in tiles:
            if tile.index not in self._written:
                self._whole.narrow(self.dim, tile.start, tile.tokens).zero_()
        return self._whole
