"""Option values of `memo bench`: sizes as people write them, counts, lists."""

from __future__ import annotations

import pytest

from memo.bench.options import parse_count, parse_list, parse_size_bytes
from memo.training.contracts import RefusedInputError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GiB", 2 << 30),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("512MiB", 512 << 20),
        ("512 mib", 512 << 20),
        ("4M", 4 << 20),
        ("64K", 64 << 10),
        ("64kib", 64 << 10),
        ("1T", 1 << 40),
        ("2GB", 2_000_000_000),
        ("500MB", 500_000_000),
        ("1.5GiB", 3 << 29),
        ("4096", 4096),
        ("4096B", 4096),
        (" 1MiB ", 1 << 20),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size_bytes("--size", text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1M", "0", "2Gi B", "2iB", "4X", "1e9", "1,5G"])
def test_other_sizes_are_refused_by_name(text: str) -> None:
    with pytest.raises(RefusedInputError, match=r"--blocks is .*takes a size above 0 such as"):
        parse_size_bytes("--blocks", text)


def test_lists_are_read_between_commas() -> None:
    assert parse_list("--blocks", "1MiB, 4M", parse_size_bytes) == (1 << 20, 4 << 20)
    assert parse_list("--depths", "4,16", parse_count) == (4, 16)


@pytest.mark.parametrize("text", ["", "4,", "0", "-1", "four", "1.5", "²"])
def test_other_counts_are_refused_by_name(text: str) -> None:
    with pytest.raises(RefusedInputError, match=r"--depths: got .*, takes numbers of 1 or more"):
        parse_list("--depths", text, parse_count)
