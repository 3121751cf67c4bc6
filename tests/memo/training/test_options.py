"""Option values: what they mean, and that a misspelt one is refused by name."""

from __future__ import annotations

import pytest

from memo.training.contracts import RefusedInputError
from memo.training.options import parse_placement, parse_size_bytes, parse_tile_tokens


def test_tiles_are_auto_or_a_number() -> None:
    assert parse_tile_tokens("auto") == "auto"
    assert parse_tile_tokens("512") == 512
    for text in ("many", "-1", "1.5", ""):
        with pytest.raises(RefusedInputError, match="--tile-tokens"):
            parse_tile_tokens(text)


def test_placements_are_words_or_shares() -> None:
    assert parse_placement("host") == "host"
    assert parse_placement("host=0.25, recompute=0.75") == {"host": 0.25, "recompute": 0.75}
    with pytest.raises(RefusedInputError, match="--placement"):
        parse_placement("host=a lot")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4GiB", 4 * 1024**3), ("500MB", 500_000_000), ("1.5 kib", 1536), ("77", 77), ("8b", 8)],
)
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    assert parse_size_bytes("--memory-limit", text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "4 parsecs", "-4GiB", "4GiB of memory"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RefusedInputError, match="--memory-limit"):
        parse_size_bytes("--memory-limit", text)
