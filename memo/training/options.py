"""Option values of the command line that are more than a word or a number.

Only their spelling is checked here; whether `memo.wrap` takes the values is its own business.
"""

from __future__ import annotations

import re
from typing import Literal

from memo.training.contracts import RefusedInputError

_UNITS_BYTES = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KIB": 1024,
    "MIB": 1024**2,
    "GIB": 1024**3,
}


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
    """Read a size such as 4GiB, 500MB or 1.5GiB; without a unit it is bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = None if match is None else _UNITS_BYTES.get(match[2].upper())
    if match is None or unit is None:
        raise RefusedInputError(f"{option}: got {text!r}, takes a size such as 4GiB")
    return int(float(match[1]) * unit)
