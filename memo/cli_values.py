"""Option values of the command line that are more than a word or a number.

Scope: their spelling, for all commands; whether what they are for takes the values is its own
business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from memo.training.contracts import RefusedInputError, WrapOptions
from planner.sizes import parse_bytes, parse_tokens

T = TypeVar("T")


def parse_size_bytes(option: str, text: str) -> int:
    """Read a size in bytes: 2GiB and 2G are 2^31, 2GB is 2e9, and a bare number is bytes.

    Raises:
        RefusedInputError: for anything else, and for less than one byte.
    """
    return _read(parse_bytes, option, text)


def size_bytes_or_none(option: str, text: str | None) -> int | None:
    """As `parse_size_bytes`, if there is one."""
    return None if text is None else parse_size_bytes(option, text)


def parse_token_count(option: str, text: str) -> int:
    """Read a number of tokens such as 2048, 32k or 1M; a sequence to learn from has two.

    Raises:
        RefusedInputError: for anything else.
    """
    tokens = _read(parse_tokens, option, text)
    if tokens < 2:
        raise RefusedInputError(f"{option} is {text!r}: takes 2 tokens or more")
    return tokens


def parse_tile_tokens(text: str) -> int | Literal["auto"]:
    """Read "auto" or a number of tokens.

    Raises:
        RefusedInputError: for anything else.
    """
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise RefusedInputError(f"--tile-tokens: got {text!r}, takes a number of tokens or auto")
    return int(text)


def parse_placement(text: str) -> str | dict[str, float]:
    """Read a placement, or shares of several such as "host=0.25,recompute=0.75".

    Raises:
        RefusedInputError: for a share that is no number, or a placement that is named twice.
    """
    if "=" not in text:
        return text
    takes = f"--placement: got {text!r}, takes a word, or shares as in host=0.25,recompute=0.75"
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        if name.strip() in shares:
            raise RefusedInputError(f"{takes}; {name.strip()} is there twice")
        try:
            shares[name.strip()] = float(share)
        except ValueError as exc:
            raise RefusedInputError(takes) from exc
    return shares


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


def wrap_options(
    *,
    tile_tokens: str,
    placement: str,
    skeletal: str,
    host_memory: str | None,
    spill_dir: Sequence[Path] | None,
    verify: str,
    raw: bool,
    endurance_tbw: float | None,
) -> WrapOptions:
    """The options of the training commands that are `memo.wrap`'s.

    Raises:
        RefusedInputError: for one that can't be read.
    """
    return WrapOptions(
        tile_tokens=parse_tile_tokens(tile_tokens),
        placement=parse_placement(placement),
        skeletal=skeletal,
        host_bytes=size_bytes_or_none("--host-memory", host_memory),
        spill_dir=[str(one) for one in spill_dir] if spill_dir else None,
        verify=verify,
        raw=raw,
        endurance_tbw=endurance_tbw,
    )


def _read(parse: Callable[[str, str], int], option: str, text: str) -> int:
    try:
        return parse(text, option)
    except ValueError as error:
        raise RefusedInputError(str(error)) from error
