"""Reading ranges out of what transformers gives a mask function, against the mask it would make."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import masking_utils as hf

from memo.attention.masks import MaskError, RangeMask, Row, range_mask
from tests.memo.attention.reference import dense_mask

TOKENS, BATCH = 13, 2
PACKED = torch.tensor([[0] * 4 + [1] * 9, [0] * 13])
PADDING = {
    "none": None,
    "right": torch.tensor([[1] * 13, [1] * 9 + [0] * 4]),
    "left": torch.tensor([[0] * 3 + [1] * 10, [0] * 5 + [1] * 8]),
    "empty row": torch.tensor([[1] * 13, [0] * 13]),
}
FUNCTIONS: dict[str, Callable[..., object]] = {
    "causal": hf.causal_mask_function,
    "bidirectional": hf.bidirectional_mask_function,
    "window": hf.sliding_window_causal_mask_function(4),
    "window of 1": hf.sliding_window_causal_mask_function(1),
    "packed": hf.and_masks(hf.causal_mask_function, hf.packed_sequence_mask_function(PACKED)),
    "packed window": hf.and_masks(
        hf.sliding_window_causal_mask_function(3), hf.packed_sequence_mask_function(PACKED)
    ),
}


def _theirs(function: Callable[..., object], padding: Tensor | None) -> Tensor:
    mask = hf.sdpa_mask(
        batch_size=BATCH,
        q_length=TOKENS,
        kv_length=TOKENS,
        mask_function=function,
        attention_mask=None if padding is None else padding.bool(),
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        allow_torch_fix=False,
    )
    assert mask is not None
    return mask[:, 0].expand(BATCH, TOKENS, TOKENS)


def _read(function: Callable[..., object], padding: Tensor | None) -> RangeMask:
    return range_mask(function, batch_size=BATCH, tokens=TOKENS, padding=padding, position_ids=None)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_ranges_are_the_mask_that_transformers_makes(function: str, padding: str) -> None:
    valid = PADDING[padding]
    mask = _read(FUNCTIONS[function], valid)
    real = torch.ones(BATCH, TOKENS).bool() if valid is None else valid.bool()
    theirs = _theirs(FUNCTIONS[function], valid)
    assert torch.equal(dense_mask(mask, BATCH)[real], theirs[real])


def test_padding_on_the_right_sees_what_transformers_lets_it_see() -> None:
    padding = PADDING["right"]
    mask = _read(FUNCTIONS["causal"], padding)
    assert torch.equal(dense_mask(mask, BATCH), _theirs(FUNCTIONS["causal"], padding))


def test_chunks_are_counted_from_a_rows_first_token() -> None:
    left = torch.tensor([0, 3])
    function = hf.chunked_causal_mask_function(4, left)
    padding = torch.tensor([[1] * 13, [0] * 3 + [1] * 10])
    mask = _read(function, padding)
    assert mask.chunk == 4
    real = padding.bool()
    assert torch.equal(dense_mask(mask, BATCH)[real], _theirs(function, padding)[real])


@pytest.mark.parametrize(
    ("ids", "starts"),
    [
        (torch.arange(13)[None], ((0,),)),
        (torch.tensor([[*range(4), *range(6), *range(3)]]), ((0, 4, 10),)),
        (torch.tensor([[*range(13)], [*range(5), *range(8)]]), ((0,), (0, 5))),
        (torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]]), ((0, 1, 9),)),
        (torch.zeros(3, 1, 13), ((0,),)),  # positions in three parts tell no documents
    ],
)
def test_position_ids_tell_documents(ids: Tensor, starts: tuple[tuple[int, ...], ...]) -> None:
    mask = range_mask(
        hf.causal_mask_function, batch_size=2, tokens=13, padding=None, position_ids=ids
    )
    assert tuple(row.starts for row in mask.rows) == starts


def test_positions_within_padding_start_no_document() -> None:
    padding = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    ids = torch.tensor([[1, 1, 1, 0, 1, 0, 1], [0, 1, 0, 1, 1, 1, 1]])
    mask = range_mask(
        hf.causal_mask_function, batch_size=2, tokens=7, padding=padding, position_ids=ids
    )
    assert mask.rows == (Row((3, 7), (3, 5)), Row((0, 4), (0, 2)))
    assert mask.rows[0].documents == ((3, 5), (5, 7))


def test_equal_rows_are_told_once() -> None:
    mask = _read(FUNCTIONS["causal"], torch.ones(BATCH, TOKENS))
    assert mask.rows == RangeMask.full(TOKENS, causal=True).rows


def test_padding_between_tokens_is_refused() -> None:
    with pytest.raises(MaskError, match="between real tokens"):
        _read(FUNCTIONS["causal"], torch.tensor([[1, 1, 0, 1, *[1] * 9]] * 2))


def test_an_unknown_function_is_refused_by_name() -> None:
    def every_third(b: int, h: int, q: int, k: int) -> bool:
        return (q - k) % 3 == 0

    for function in (every_third, hf.and_masks(hf.causal_mask_function, every_third)):
        with pytest.raises(MaskError, match="every_third"):
            _read(function, None)
    with pytest.raises(MaskError, match="or_masks"):
        _read(hf.or_masks(hf.causal_mask_function, hf.bidirectional_mask_function), None)
