"""The automatic size of tiles: from widths and bytes, within its bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memo.tiling import auto_tile_tokens


def _tokens(batch: int, hidden: int, wide: int, dtype: torch.dtype = torch.float32) -> int:
    layer = nn.Sequential(nn.Linear(hidden, wide, device="meta"), nn.LayerNorm(wide, device="meta"))
    return auto_tile_tokens(torch.empty(batch, 9, hidden, dtype=dtype), layer)


def test_tiles_are_powers_of_two_that_fill_the_budget() -> None:
    for wide in (100, 576, 1536, 3000):
        tokens = _tokens(1, 64, wide)
        assert tokens & (tokens - 1) == 0
        assert tokens * wide * 4 * 8 <= 32 << 20 < 2 * tokens * wide * 4 * 8 or tokens == 256


def test_more_bytes_a_token_make_smaller_tiles() -> None:
    assert _tokens(1, 64, 512) == 2048
    assert _tokens(2, 64, 512) == 1024
    assert _tokens(1, 64, 512, torch.bfloat16) == 4096
    assert _tokens(1, 512, 64) == 2048


@pytest.mark.parametrize("wide", [50_000, 10**6])
def test_tiles_are_never_too_small_for_matmuls(wide: int) -> None:
    assert _tokens(4, 64, wide) == 256


def test_a_layer_of_vectors_is_as_wide_as_its_input() -> None:
    assert auto_tile_tokens(torch.empty(1, 9, 512), nn.LayerNorm(512)) == 2048


def test_accelerators_get_larger_tiles() -> None:
    x = torch.empty(1, 9, 512, device="meta")
    assert auto_tile_tokens(x, nn.LayerNorm(512)) == 32 * 2048
