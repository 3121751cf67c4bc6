"""Cutting a batch among ranks, and what a rank knows of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memo.attention.masks import MaskError, RangeMask, Row
from memo.parallel.batch import shift_labels, split_batch, total_tokens
from memo.parallel.contracts import SequenceGroup
from memo.parallel.shares import share_tokens
from memo.parallel.view import SequenceView
from offload import MemoError

TOKENS, BATCH = 23, 2
PADDING = torch.ones(BATCH, TOKENS, dtype=torch.int64)
PADDING[0, 19:] = 0
POSITIONS = torch.cat([torch.arange(7), torch.arange(15), torch.arange(1)])[None]


def _views(ranks: int, unit: int, **known: Any) -> list[SequenceView]:
    shares = share_tokens(TOKENS, ranks, unit)
    return [
        SequenceView.of(SequenceGroup(None, rank, ranks), shares, batch_size=BATCH, **known)
        for rank in range(ranks)
    ]


def _batch() -> dict[str, Any]:
    ids = torch.arange(BATCH * TOKENS).view(BATCH, TOKENS)
    return {"input_ids": ids, "labels": ids + 100, "attention_mask": PADDING, "use_cache": False}


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("unit", [1, 4])
def test_shares_joined_are_the_whole(ranks: int, unit: int) -> None:
    batch = _batch()
    parts = [split_batch(batch, view) for view in _views(ranks, unit)]
    joined = {
        name: torch.cat([part[name] for part in parts], dim=-1)
        for name in ("input_ids", "attention_mask", "labels", "shift_labels", "position_ids")
    }
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(joined[name], batch[name])
    assert joined["position_ids"].tolist() == [list(range(TOKENS))]
    assert torch.equal(joined["shift_labels"][:, :-1], batch["labels"][:, 1:])
    assert (joined["shift_labels"][:, -1] == -100).all()
    assert all(part["use_cache"] is False for part in parts)


def test_vectors_and_positions_by_axis_are_cut() -> None:
    (_, view) = _views(2, 1)
    embeds = torch.randn(BATCH, TOKENS, TOKENS)
    positions = torch.arange(3 * BATCH * TOKENS).view(3, BATCH, TOKENS)
    part = split_batch({"inputs_embeds": embeds, "position_ids": positions}, view)
    assert torch.equal(part["inputs_embeds"], embeds[:, 12:])
    assert torch.equal(part["position_ids"], positions[..., 12:])


def test_labels_that_are_shifted_already_are_not_shifted_again() -> None:
    shifted = torch.arange(TOKENS).repeat(BATCH, 1)
    parts = [split_batch({**_batch(), "shift_labels": shifted}, view) for view in _views(3, 1)]
    assert torch.equal(torch.cat([part["shift_labels"] for part in parts], dim=1), shifted)


def test_labels_are_shifted_as_transformers_does() -> None:
    assert shift_labels(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, -100]]


def test_every_rank_knows_all_documents_and_padding() -> None:
    first, second = Row((0, 19), (0, 7)), Row((0, TOKENS), (0, 7, 22))
    for view in _views(3, 4, attention_mask=PADDING, position_ids=POSITIONS):
        assert view.rows == (first, second)
        own = RangeMask(view.own[1] - view.own[0], (Row((0, 1), (0,)),), True, 5, None)
        assert view.whole(own) == RangeMask(TOKENS, (first, second), True, 5, None)
        assert view.whole(view.whole(own)) == view.whole(own)


def test_masks_of_another_length_are_refused() -> None:
    (view, *_) = _views(3, 1)
    with pytest.raises(MaskError, match="a mask of 5 tokens on a rank that has 8 of 23"):
        view.whole(RangeMask.full(5, causal=True))


def test_padding_between_tokens_is_refused() -> None:
    hole = PADDING.clone()
    hole[1, 5] = 0
    with pytest.raises(MaskError, match="padding between real tokens"):
        _views(2, 1, attention_mask=hole)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"pixel_values": torch.zeros(TOKENS, 3)}, MemoError, "pixel_values of shape"),
        ({"labels": torch.zeros(BATCH, 5, dtype=torch.int64)}, ValueError, "labels has 5 tokens"),
        ({"attention_mask": torch.ones(BATCH, 1, 4, 4)}, ValueError, "attention_mask has 4 tokens"),
        ({"input_ids": torch.zeros(BATCH, 9, dtype=torch.int64)}, ValueError, "batch has 9 tokens"),
        ({"input_ids": None}, ValueError, "neither input_ids nor inputs_embeds"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    extra: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        split_batch({**_batch(), **extra}, _views(2, 1)[0])


def test_a_view_is_of_its_shares() -> None:
    assert total_tokens(_batch()) == TOKENS
    with pytest.raises(ValueError, match="shares are for 3 ranks: takes 2"):
        SequenceView.of(SequenceGroup(None, 0, 2), share_tokens(9, 3), batch_size=1)
    with pytest.raises(ValueError, match="position_ids has 4 tokens: takes all 9"):
        SequenceView.of(
            SequenceGroup(None, 0, 3),
            share_tokens(9, 3),
            batch_size=1,
            position_ids=torch.arange(4)[None],
        )
