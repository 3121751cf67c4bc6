"""Option values of `memo bench` that are more than a word or a number.

Scope: their spelling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from memo.training.contracts import RefusedInputError
from planner.sizes import parse_bytes

T = TypeVar("T")


def parse_size_bytes(option: str, text: str) -> int:
    """Read a size: 2GiB and 2G are 2^31 bytes, 2GB is 2e9, and a bare number is bytes.

    Raises:
        RefusedInputError: for anything else, and for less than one byte.
    """
    try:
        return parse_bytes(text, option)
    except ValueError as error:
        raise RefusedInputError(str(error)) from error


def parse_count(option: str, text: str) -> int:
    """Read a number of 1 or more.

    Raises:
        RefusedInputError: for anything else.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise RefusedInputError(f"{option}: got {text!r}, takes numbers of 1 or more")
    return int(text)


def parse_list(option: str, text: str, parse: Callable[[str, str], T]) -> tuple[T, ...]:
    """Read values between commas.

    Raises:
        RefusedInputError: when one can't be read.
    """
    return tuple(parse(option, part) for part in text.split(","))
