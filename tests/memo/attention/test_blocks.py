"""Cutting masks into blocks: every pair that a mask allows is in one block, once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from memo.attention.blocks import Block, blocks_of
from memo.attention.masks import RangeMask, Row
from tests.memo.attention.calls import mask as masks
from tests.memo.attention.reference import dense_mask


@settings(deadline=None, max_examples=120)
@given(masks())
def test_every_allowed_pair_is_in_one_block(case: tuple[RangeMask, int]) -> None:
    mask, batch = case
    covered = torch.zeros(batch, mask.tokens, mask.tokens, dtype=torch.int32)
    for block in blocks_of(mask, batch):
        allowed = block.allowed(torch.device("cpu"))
        assert allowed.any(1).all(), f"a query of {block} sees nothing"
        assert not block.is_open or allowed.all(), f"{block} is not open"
        covered[slice(*block.rows), slice(*block.q), slice(*block.k)] += allowed.int()
    assert torch.equal(covered, dense_mask(mask, batch).int())


@settings(deadline=None)
@given(masks())
def test_blocks_with_a_mask_of_their_own_are_narrow(case: tuple[RangeMask, int]) -> None:
    mask, batch = case
    for block in blocks_of(mask, batch):
        if not (block.is_square or block.is_open):
            assert block.window is not None
            queries, keys, _ = block.shape
            step = max(128, block.window // 4)
            assert queries <= step
            if mask.causal:
                assert keys < queries + block.window


def test_known_masks_have_the_blocks_that_kernels_are_fast_on() -> None:
    assert list(blocks_of(RangeMask.full(300, causal=True), 2)) == [
        Block((0, 2), (0, 300), (0, 300), True)
    ]
    packed = RangeMask(300, (Row((0, 300), (0, 111, 299)),))
    assert [block.is_square for block in blocks_of(packed, 1)] == [True] * 3
    padded = RangeMask(300, (Row((0, 250), (0,)),))
    square, rest = blocks_of(padded, 1)
    assert square.is_square
    assert rest.is_open
    assert (rest.q, rest.k) == ((250, 300), (0, 250))


def test_equal_neighbours_of_a_batch_share_blocks() -> None:
    long, short = Row((0, 9), (0,)), Row((4, 9), (4,))
    mask = RangeMask(9, (long, long, short, long))
    assert [block.rows for block in blocks_of(mask, 4)] == [(0, 2), (2, 3), (3, 4)]


def test_bands_of_one_window_share_their_shape() -> None:
    bands = list(blocks_of(RangeMask(2000, (Row((0, 2000), (0,)),), window=100), 1))
    inner = {band.shape for band in bands[1:-1]}
    assert len(bands) == 16
    assert inner == {(128, 227, 99)}


@pytest.mark.parametrize(
    ("block", "is_open"),
    [
        (Block((0, 1), (5, 9), (0, 6), True), True),
        (Block((0, 1), (5, 9), (0, 7), True), False),
        (Block((0, 1), (5, 9), (0, 6), True, 9), True),
        (Block((0, 1), (5, 9), (0, 6), True, 8), False),
        (Block((0, 1), (0, 9), (0, 9), False), True),
        (Block((0, 1), (0, 9), (0, 9), False, 8), False),
    ],
)
def test_open_blocks_are_those_where_all_is_seen(block: Block, is_open: bool) -> None:
    assert block.is_open is is_open
    assert bool(block.allowed(torch.device("cpu")).all()) is is_open
