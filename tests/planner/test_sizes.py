"""Sizes: what is read, what is refused by name, and that what is printed reads back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.sizes import (
    format_bytes,
    format_rate,
    format_tokens,
    parse_bytes,
    parse_rate,
    parse_token_range,
    parse_tokens,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1", 1),
        ("131072", 131_072),
        ("1_048_576", 1_048_576),
        ("64k", 65_536),
        ("64K", 65_536),
        ("1M", 1_048_576),
        ("3m", 3_145_728),
        (" 1536K ", 1_572_864),
        ("1G", 1_073_741_824),
    ],
)
def test_tokens_are_read(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    "text",
    ["0", "0K", "-1", "-4K", "1.5M", "1e6", "", "M", "1MB", "1 M", "1,024", "1__0", "_1", "many"],
)
def test_tokens_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--tokens is .*: takes a whole number") as caught:
        parse_tokens(text, "--tokens")
    assert repr(text) in str(caught.value)


def test_a_fraction_that_is_whole_is_told_how() -> None:
    with pytest.raises(ValueError, match=r"write 1536K$"):
        parse_tokens("1.5M")
    with pytest.raises(ValueError, match=r"\(of 1024\)$"):
        parse_tokens("1.3K")


@given(st.integers(1, 1 << 40))
def test_printed_tokens_read_back(tokens: int) -> None:
    assert parse_tokens(format_tokens(tokens)) == tokens


def test_tokens_are_printed_short() -> None:
    shown = [format_tokens(n) for n in (1000, 1024, 98_304, 1 << 20, 1 << 30, (1 << 20) + 1)]
    assert shown == ["1_000", "1K", "96K", "1M", "1G", "1_048_577"]


def test_a_range_doubles_and_ends_where_it_says() -> None:
    kib = 1024
    assert parse_token_range("32K..256K") == (32 * kib, 64 * kib, 128 * kib, 256 * kib)
    assert parse_token_range("32K..100K") == (32 * kib, 64 * kib, 100 * kib)
    assert parse_token_range("5..6") == (5, 6)


@pytest.mark.parametrize("text", ["32K", "4M..32K", "1K..1K", "..4M", "0..4M", "1K...4K"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^tokens is "):
        parse_token_range(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("77", 77),
        ("8b", 8),
        ("80GB", 80 * 10**9),
        ("80GiB", 80 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 kib", 1536),
        ("1TB", 10**12),
        ("7.68TB", 7_680_000_000_000),
        ("1_000KiB", 1_024_000),
        ("2PiB", 2**51),
        ("4M", 4 * 2**20),
        ("80 g", 80 * 2**30),
        ("80Gi", 80 * 2**30),
        # No float on the way: it would give one byte less.
        ("2.01GB", 2_010_000_000),
    ],
)
def test_bytes_are_read(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0GB",
        "-4GiB",
        "GiB",
        "4 parsecs",
        "4GiB of memory",
        "1e9",
        "1bb",
        "1ib",
        "0.3B",
        "4,5GB",
    ],
)
def test_bytes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--host-memory is .*takes a size above 0"):
        parse_bytes(text, "--host-memory")


@pytest.mark.parametrize("digits", [25, 310, 5000])
def test_sizes_that_nobody_has_are_refused(digits: int) -> None:
    number = "9" * digits
    with pytest.raises(ValueError, match=r"^--host-memory is .*takes a size above 0"):
        parse_bytes(number, "--host-memory")
    with pytest.raises(ValueError, match=r"^--pcie is .*takes bytes a second"):
        parse_rate(f"{number}B/s", "--pcie")
    for text in (f"{number}.5K", "9" * 5000):
        with pytest.raises(ValueError, match=r"^tokens is .*takes a whole number"):
            parse_tokens(text)


def test_rates_are_read() -> None:
    assert parse_rate("6GB/s") == 6e9
    assert parse_rate("32 GB/s") == 32e9
    assert parse_rate("1.5GiB/s") == 1.5 * 2**30


@pytest.mark.parametrize(
    "text", ["6GB", "6GB/min", "6Gb/s", "6G/s", "0GB/s", "-1GB/s", "6/s", "GB/s", ""]
)
def test_rates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--pcie is .*: takes bytes a second"):
        parse_rate(text, "--pcie")


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0B"),
        (512, "512B"),
        (999, "999B"),
        (1000, "1KB"),
        (85_899_345_920, "85.9GB"),
        (7_680_000_000_000, "7.68TB"),
        (999_999, "1MB"),
        (123_456_789, "123MB"),
        (99_960_000, "100MB"),
        (2 * 10**12, "2TB"),
        (5 * 10**18, "5000PB"),
        (-2_500_000, "-2.5MB"),
    ],
)
def test_bytes_are_printed_short(size_bytes: int, shown: str) -> None:
    assert format_bytes(size_bytes) == shown


@given(st.integers(1, 10**15))
def test_printed_bytes_read_back_to_three_digits(size_bytes: int) -> None:
    assert parse_bytes(format_bytes(size_bytes)) == pytest.approx(size_bytes, rel=0.00501)


def test_rates_are_printed_as_they_are_read() -> None:
    assert format_rate(6e9) == "6GB/s"
    assert parse_rate(format_rate(31.5e9)) == 31.5e9
