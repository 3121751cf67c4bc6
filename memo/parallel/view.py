"""A rank's view of the sequences of a model call: which tokens are its own, and what every row of
the batch is made of.

Scope: made once per model call from arguments that every rank has whole, so that nothing has to be
agreed on by messages. Cutting the arguments stands in `batch.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from transformers.masking_utils import causal_mask_function

from memo.attention.masks import MaskError, RangeMask, Row, range_mask
from memo.parallel.contracts import SequenceGroup, TokenShares


@dataclass(frozen=True, slots=True)
class SequenceView:
    """`rows` of the whole sequences, one or one per sequence of the batch; `shares` of them."""

    group: SequenceGroup
    shares: TokenShares
    rows: tuple[Row, ...]

    @classmethod
    def of(
        cls,
        group: SequenceGroup,
        shares: TokenShares,
        *,
        batch_size: int,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> SequenceView:
        """The view of a batch, told by the whole of its arguments.

        Args:
            attention_mask: [batch, tokens], true where a token is real.
            position_ids: [batch or 1, tokens]; a document begins where they fall back or stand
                still.

        Raises:
            ValueError: for shares of another number of ranks, or arguments of other lengths.
            MaskError: for padding between real tokens.
        """
        if shares.ranks != group.size:
            raise ValueError(f"shares are for {shares.ranks} ranks: takes {group.size}")
        for name, value in (("attention_mask", attention_mask), ("position_ids", position_ids)):
            if value is not None and value.shape[-1] != shares.total_tokens:
                raise ValueError(
                    f"{name} has {value.shape[-1]} tokens: takes all {shares.total_tokens}"
                )
        mask = range_mask(
            causal_mask_function,
            batch_size=batch_size,
            tokens=shares.total_tokens,
            padding=attention_mask,
            position_ids=position_ids,
        )
        return cls(group, shares, mask.rows)

    @property
    def own(self) -> tuple[int, int]:
        """This rank's tokens `[start, stop)`."""
        return self.shares.of(self.group.rank)

    @property
    def is_padded(self) -> bool:
        """Whether any row has padding."""
        return any(row.valid != (0, self.shares.total_tokens) for row in self.rows)

    @property
    def is_padded_left(self) -> bool:
        """Whether any row begins with padding."""
        return any(row.valid[0] > 0 for row in self.rows)

    def cut(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of a whole tensor."""
        start, stop = self.own
        return tensor.narrow(dim, start, stop - start)

    def whole(self, mask: RangeMask) -> RangeMask:
        """What a mask of a rank's own tokens, or of all, says of all: its kind (causal, window,
        chunk) stays, documents and padding are the view's.

        Raises:
            MaskError: for a mask of another number of tokens.
        """
        start, stop = self.own
        if mask.tokens not in (stop - start, self.shares.total_tokens):
            raise MaskError(
                f"a mask of {mask.tokens} tokens on a rank that has {stop - start} of "
                f"{self.shares.total_tokens}"
            )
        return replace(mask, tokens=self.shares.total_tokens, rows=self.rows)
