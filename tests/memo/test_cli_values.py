"""Option values: what they mean, and that a misspelt one is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from memo.cli_values import (
    parse_count,
    parse_list,
    parse_placement,
    parse_size_bytes,
    parse_tile_tokens,
    parse_token_count,
    size_bytes_or_none,
    wrap_options,
)
from memo.training.contracts import RefusedInputError, WrapOptions


def test_tiles_are_auto_or_a_number() -> None:
    assert parse_tile_tokens("auto") == "auto"
    assert parse_tile_tokens("512") == 512
    for text in ("many", "-1", "1.5", ""):
        with pytest.raises(RefusedInputError, match="--tile-tokens"):
            parse_tile_tokens(text)


def test_placements_are_words_or_shares() -> None:
    assert parse_placement("host") == "host"
    assert parse_placement("host=0.25, recompute=0.75") == {"host": 0.25, "recompute": 0.75}
    for text in ("host=a lot", "host=0.5,host=0.5"):
        with pytest.raises(RefusedInputError, match="--placement"):
            parse_placement(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GiB", 2 << 30),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("512MiB", 512 << 20),
        ("512 mib", 512 << 20),
        ("1.5 kib", 1536),
        ("4M", 4 << 20),
        ("64K", 64 << 10),
        ("1T", 1 << 40),
        ("2GB", 2_000_000_000),
        ("500MB", 500_000_000),
        ("4096", 4096),
        ("8b", 8),
        (" 1MiB ", 1 << 20),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size_bytes("--size", text) == size_bytes
    assert size_bytes_or_none("--size", text) == size_bytes


def test_a_size_may_not_be_given() -> None:
    assert size_bytes_or_none("--memory-limit", None) is None


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1M", "0", "2Gi B", "2iB", "4X", "1e9", "1,5G", "4GiB of memory"]
)
def test_other_sizes_are_refused_by_name(text: str) -> None:
    with pytest.raises(RefusedInputError, match=r"--blocks is .*takes a size above 0 such as"):
        parse_size_bytes("--blocks", text)


def test_a_sequence_has_two_tokens_or_more() -> None:
    assert parse_token_count("--tokens", "32k") == 32 << 10
    for text in ("1", "0", "1.5M", "lots"):
        with pytest.raises(RefusedInputError, match=r"--tokens is '"):
            parse_token_count("--tokens", text)


def test_lists_are_read_between_commas() -> None:
    assert parse_list("--blocks", "1MiB, 4M", parse_size_bytes) == (1 << 20, 4 << 20)
    assert parse_list("--depths", "4,16", parse_count) == (4, 16)


@pytest.mark.parametrize("text", ["", "4,", "0", "-1", "four", "1.5", "²"])
def test_other_counts_are_refused_by_name(text: str) -> None:
    with pytest.raises(RefusedInputError, match=r"--depths: got .*, takes numbers of 1 or more"):
        parse_list("--depths", text, parse_count)


def test_wraps_options_are_read_together() -> None:
    found = wrap_options(
        tile_tokens="512",
        placement="host=0.25,ssd=0.75",
        skeletal="ssd",
        host_memory="1GiB",
        spill_dir=[Path("/a"), Path("/b")],
        verify="checksum",
        raw=True,
        endurance_tbw=600.0,
    )
    assert found == WrapOptions(
        tile_tokens=512,
        placement={"host": 0.25, "ssd": 0.75},
        skeletal="ssd",
        host_bytes=1 << 30,
        spill_dir=["/a", "/b"],
        verify="checksum",
        raw=True,
        endurance_tbw=600.0,
    )
