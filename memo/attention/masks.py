"""Masks as ranges: what a query may see is an interval of keys, never an [S, S] matrix.

Scope: `RangeMask`, and reading one out of what transformers gives a mask function (`range_mask`).
What kernels make of it stands in `blocks.py`. Masks that are no ranges are refused with
`MaskError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getclosurevars
from itertools import pairwise

import torch
from torch import Tensor

from offload.contracts import MemoError


class MaskError(MemoError):
    """A mask that is not made of ranges."""


Range = tuple[int, int]
"""Tokens `[start, stop)`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of a batch: the valid tokens (the rest is padding) and where its documents
    start.
    """

    valid: Range
    starts: tuple[int, ...]

    @property
    def documents(self) -> tuple[Range, ...]:
        return (
            tuple(pairwise((*self.starts, self.valid[1]))) if self.valid[0] < self.valid[1] else ()
        )


@dataclass(frozen=True, slots=True)
class RangeMask:
    """What every query sees: keys of its own document, up to itself if `causal`, at most `window`
    back.

    `rows` has one entry per sequence of the batch, or a single one for all of them. With `chunk`,
    attention stays within chunks of so many tokens, counted from a document's start (Llama 4).
    """

    tokens: int
    rows: tuple[Row, ...]
    causal: bool = True
    window: int | None = None
    chunk: int | None = None

    @classmethod
    def full(cls, tokens: int, *, causal: bool) -> RangeMask:
        """One document without padding."""
        return cls(tokens, (Row((0, tokens), (0,)),), causal)


@dataclass(frozen=True, slots=True)
class _Pattern:
    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    documents: Tensor | None = None

    def __and__(self, other: _Pattern) -> _Pattern:
        documents = self.documents if other.documents is None else other.documents
        window, chunk = (
            min((n for n in pair if n is not None), default=None)
            for pair in ((self.window, other.window), (self.chunk, other.chunk))
        )
        return _Pattern(self.causal or other.causal, window, chunk, documents)


def read_pattern(mask_function: Callable[..., object]) -> _Pattern:
    """What a mask function of `transformers.masking_utils` says, told by its closures.

    Raises:
        MaskError: for a function that is not known to be made of ranges.
    """
    name = mask_function.__qualname__.split(".")[0]
    closure = getclosurevars(mask_function).nonlocals
    match name:
        case "causal_mask_function":
            return _Pattern(causal=True)
        case "bidirectional_mask_function":
            return _Pattern()
        case "sliding_window_overlay":
            return _Pattern(window=int(closure["sliding_window"]))
        case "chunked_overlay":
            return _Pattern(chunk=int(closure["chunk_size"]))
        case "packed_sequence_mask_function":
            return _Pattern(documents=closure["packed_sequence_mask"])
        case "remap_positions_for_packed_sequence" | "add_offsets_to_mask_function":
            return read_pattern(closure["mask_function"])
        case "and_masks":
            pattern = _Pattern()
            for part in closure["mask_functions"]:
                pattern &= read_pattern(part)
            return pattern
        case _:
            raise MaskError(f"a mask made by {mask_function.__qualname__!r} is not made of ranges")


def range_mask(
    mask_function: Callable[..., object],
    *,
    batch_size: int,
    tokens: int,
    padding: Tensor | None,
    position_ids: Tensor | None,
) -> RangeMask:
    """The ranges of a mask.

    Args:
        padding: [batch, tokens], true where a token is real; real tokens of a row must be one run.
        position_ids: [batch or 1, tokens]; they tell documents apart, by where they fall back or
            stand still, where transformers did not look for them: beside a padding mask, and for
            models that do not hand them on.

    Raises:
        MaskError: for masks that are no ranges, and padding in the middle of a sequence.
    """
    pattern = read_pattern(mask_function)
    valid = _valid_ranges(padding, tokens)
    starts = _document_starts(pattern.documents)
    if starts is None and position_ids is not None:
        starts = _restarts(position_ids)
    rows = _rows(valid or [(0, tokens)], starts or [[]], batch_size)
    return RangeMask(tokens, rows, pattern.causal, pattern.window, pattern.chunk)


def _rows(valid: list[Range], starts: list[list[int]], batch_size: int) -> tuple[Row, ...]:
    count = max(len(valid), len(starts))
    rows = []
    for index in range(count):
        first, stop = valid[index % len(valid)]
        inner = [start for start in starts[index % len(starts)] if first < start < stop]
        rows.append(Row((first, stop), (first, *inner)))
    return (rows[0],) if len(set(rows)) == 1 else tuple(rows * (batch_size // count))


def _valid_ranges(padding: Tensor | None, tokens: int) -> list[Range] | None:
    if padding is None:
        return None
    real = padding[:, :tokens].bool()
    count = real.sum(-1)
    # argmax gives the first of equal values; an empty row is the empty range.
    first = real.int().argmax(-1)
    last = tokens - real.flip(-1).int().argmax(-1)
    stop = torch.where(count > 0, last, first)
    if not torch.equal(stop - first, count):
        raise MaskError(
            "attention_mask has padding between real tokens; memo takes right- or left-padded rows"
        )
    return list(zip(first.tolist(), stop.tolist(), strict=True))


def _document_starts(documents: Tensor | None) -> list[list[int]] | None:
    if documents is None:
        return None
    changed = torch.diff(documents, dim=-1) != 0
    return [[index + 1 for index in row.nonzero().flatten().tolist()] for row in changed]


def _restarts(position_ids: Tensor) -> list[list[int]] | None:
    if position_ids.ndim != 2:
        return None
    stands = torch.diff(position_ids, dim=-1) <= 0
    return [[index + 1 for index in row.nonzero().flatten().tolist()] for row in stands]
