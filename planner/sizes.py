"""Sizes as people write them: numbers of tokens, bytes, and bytes a second.

Scope: reading and printing, exactly. Tokens count in powers of 1024 (`64k`, `1M`) and are whole:
`1.5M` is refused, `1536K` taken. Bytes have decimal units (`80GB`, `1.5TB`), binary ones (`80GiB`,
`80Gi`, and `80G`, as fio, dd, docker and Slurm have it), or none. Rates are bytes and a time:
`6GB/s`; `6Gb/s` is refused, since it may be bits, and `6G/s`, since it says neither.
"""

from __future__ import annotations

import re
from fractions import Fraction

MOST = 10**24
"""Of any size, and of a rate: what is computed with them stays far from where doubles end."""

_LONGEST = 64
"""Letters of a number. Python reads none of thousands of digits."""

_TOKEN_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_PREFIXES = "kmgtp"
_BYTE_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate(_PREFIXES, start=1)
    for suffix, base in (("b", 1000), ("ib", 1024), ("i", 1024), ("", 1024))
}

_TOKENS = re.compile(r"(\d+(?:_\d+)*)([A-Za-z]?)")
_BYTES = re.compile(r"(\d+(?:_\d+)*(?:\.\d+)?)\s*([A-Za-z]*)")
_FRACTION = re.compile(r"(\d+\.\d+)([kmgKMG])")
_TAKES_TOKENS = "takes a whole number of tokens above 0, such as 1_048_576, 64K or 1M (of 1024)"
_TAKES_BYTES = "takes a size above 0 such as 80GB (decimal), 80GiB or 80G (binary)"
_TAKES_RATE = "takes bytes a second above 0 such as 6GB/s"
_TAKES_RANGE = "takes two numbers of tokens, the second larger, as in 32K..4M"


def parse_tokens(text: str, name: str = "tokens") -> int:
    """A number of tokens: `131072`, `1_048_576`, `64k`, `1M`; k, M and G are powers of 1024.

    Raises:
        ValueError: for anything else, 0 and fractions among it; opens with `name`.
    """
    match = _match(_TOKENS, text.strip())
    unit = None if match is None else _TOKEN_UNITS.get(match[2].lower())
    if match is None or unit is None or int(match[1]) == 0:
        raise ValueError(f"{name} is {text!r}: {_TAKES_TOKENS}{_whole_instead(text)}")
    return int(match[1]) * unit


def parse_token_range(text: str, name: str = "tokens") -> tuple[int, ...]:
    """`32K..4M`: the first number, doubled as often as it stays below the second, and the second.

    Raises:
        ValueError: for what is no such range; opens with `name`.
    """
    first, dots, last = text.partition("..")
    if not dots:
        raise ValueError(f"{name} is {text!r}: {_TAKES_RANGE}")
    low, high = parse_tokens(first, name), parse_tokens(last, name)
    if low >= high:
        raise ValueError(f"{name} is {text!r}: {_TAKES_RANGE}")
    tokens = [low]
    while tokens[-1] * 2 < high:
        tokens.append(tokens[-1] * 2)
    return (*tokens, high)


def parse_bytes(text: str, name: str = "size") -> int:
    """A size in bytes: `80GB` (decimal), `1.5TiB`, `512 MiB`, `4M` (binary), `4096`; units in any
    case.

    Raises:
        ValueError: for anything else, 0 and what is no whole number of bytes among it; opens with
            `name`.
    """
    size = _scaled(text.strip(), name, text, _TAKES_BYTES)
    if size.denominator != 1:
        raise ValueError(f"{name} is {text!r}, which is no whole number of bytes: {_TAKES_BYTES}")
    return int(size)


def parse_rate(text: str, name: str = "rate") -> float:
    """Bytes a second: `6GB/s`, `1.5 GiB/s`.

    Raises:
        ValueError: for anything else, 0 and bits (`6Gb/s`) among it; opens with `name`.
    """
    amount, slash, second = text.strip().partition("/")
    amount = amount.rstrip()
    if not slash or second.strip() != "s" or not amount.endswith("B"):
        hint = ", with a capital B for bytes" if amount.endswith("b") else ""
        raise ValueError(f"{name} is {text!r}: {_TAKES_RATE}{hint}")
    return float(_scaled(amount, name, text, _TAKES_RATE))


def format_tokens(tokens: int) -> str:
    """`1M`, `96K` or `100_000`: what `parse_tokens` reads back."""
    for letter in "GMK":
        unit = _TOKEN_UNITS[letter.lower()]
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{letter}"
    return f"{tokens:_}"


def format_bytes(size_bytes: float) -> str:
    """Decimal and short, three digits: `85.9GB`, `2TB`, `512B`."""
    power = 0
    while power < len(_PREFIXES) and round(abs(size_bytes), _decimals(size_bytes)) >= 1000:
        size_bytes /= 1000
        power += 1
    number = f"{size_bytes:.{_decimals(size_bytes)}f}" if power else f"{size_bytes:.0f}"
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return f"{number}{_PREFIXES[power - 1].upper() if power else ''}B"


def format_rate(bytes_per_s: float) -> str:
    """As `format_bytes`, a second: `6GB/s`."""
    return f"{format_bytes(bytes_per_s)}/s"


def _scaled(amount: str, name: str, text: str, takes: str) -> Fraction:
    match = _match(_BYTES, amount)
    unit = "" if match is None else match[2].lower()
    if match is None or unit not in _BYTE_UNITS or Fraction(match[1]) == 0:
        raise ValueError(f"{name} is {text!r}: {takes}")
    size = Fraction(match[1]) * _BYTE_UNITS[unit]
    if size > MOST:
        raise ValueError(f"{name} is {text!r}: {takes}, and {MOST:.0e} at most")
    return size


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return pattern.fullmatch(text) if len(text) <= _LONGEST else None


def _whole_instead(text: str) -> str:
    """`; write 1536K` for `1.5M`."""
    match = _match(_FRACTION, text.strip())
    if match is None:
        return ""
    tokens = Fraction(match[1]) * _TOKEN_UNITS[match[2].lower()]
    is_whole = tokens.denominator == 1 and tokens > 0
    return f"; write {format_tokens(int(tokens))}" if is_whole else ""


def _decimals(size: float) -> int:
    return 0 if abs(size) >= 99.95 else 1 if abs(size) >= 9.995 else 2
