"""Option values of the command line that are more than a word or a number.

Only their spelling is checked here; whether `memo.wrap` takes the values is its own business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from memo.training.contracts import RefusedInputError
from planner.sizes import parse_bytes, parse_tokens


def parse_tile_tokens(text: str) -> int | Literal["auto"]:
    """Read "auto" or a number of tokens."""
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise RefusedInputError(f"--tile-tokens: got {text!r}, takes a number of tokens or auto")
    return int(text)


def parse_placement(text: str) -> str | dict[str, float]:
    """Read a placement, or shares of several such as "host=0.25,recompute=0.75"."""
    if "=" not in text:
        return text
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError as exc:
            raise RefusedInputError(
                f"--placement: got {text!r}, takes a word, or shares as in host=0.25,recompute=0.75"
            ) from exc
    return shares


def parse_size_bytes(option: str, text: str | None) -> int | None:
    """Read a size such as 4GiB or 500MB, if there is one."""
    return None if text is None else _read(parse_bytes, option, text)


def parse_token_count(option: str, text: str) -> int:
    """Read a number of tokens such as 2048, 32k or 1M; a sequence to learn from has two."""
    tokens = _read(parse_tokens, option, text)
    if tokens < 2:
        raise RefusedInputError(f"{option} is {text!r}: takes 2 tokens or more")
    return tokens


def _read(parse: Callable[[str, str], int], option: str, text: str) -> int:
    try:
        return parse(text, option)
    except ValueError as error:
        raise RefusedInputError(str(error)) from error
