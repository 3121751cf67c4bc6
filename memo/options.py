"""Checking what a user passed to `memo.wrap`.

Scope: from arguments to `Options`; every refusal is a `ValueError` that names the argument, what it
got and what it takes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memo.contracts import Options, Spill
from offload import Placement, Tier
from offload.host_pool import ALIGNMENT_BYTES
from ssd import BLOCK_BYTES

_VERIFY = ("none", "checksum")


def checked_options(
    *,
    tile_tokens: object = "auto",
    placement: object = "recompute",
    skeletal: object = "keep",
    tiled_loss: object = True,
    in_flight_bytes: object = None,
    host_bytes: object = None,
    spill_dir: object = None,
    spill_bytes: object = None,
    verify: object = "none",
    raw: object = False,
) -> Options:
    """`memo.wrap`'s arguments as options.

    Raises:
        ValueError: for an argument that is not understood, or one that another makes senseless.
    """
    options = Options(
        tile_tokens=_tile_tokens(tile_tokens),
        fractions=_fractions(placement),
        skeletal=_skeletal(skeletal),
        tiled_loss=_flag("tiled_loss", tiled_loss),
        in_flight_bytes=_bytes_or_none("in_flight_bytes", in_flight_bytes, least=0),
        host_bytes=_bytes_or_none("host_bytes", host_bytes, least=ALIGNMENT_BYTES),
        spill=spill_of(spill_dir, spill_bytes, verify, raw),
    )
    _check_spill(options)
    _check_host_bytes(options)
    return options


def planned_options(
    planned: Options,
    *,
    tiled_loss: object = True,
    spill_dir: object = None,
    spill_bytes: object = None,
    verify: object = "none",
    raw: object = False,
) -> Options:
    """A plan's options, and beside them the arguments that a plan leaves to the user.

    Raises:
        ValueError: for an argument that is not understood, that the plan makes senseless, or that
            it needs and has not got.
    """
    if not _flag("tiled_loss", tiled_loss):
        raise ValueError("tiled_loss=False: a plan counts on a loss that runs tile by tile")
    spill = spill_of(spill_dir, spill_bytes, verify, raw)
    if Tier.SSD in planned.tiers and spill is None:
        raise ValueError("the plan uses the SSD: takes spill_dir, a directory on a local disk")
    needed = 0 if planned.planned is None else planned.planned.ssd_bytes
    if spill is not None and spill.size_bytes is not None and spill.size_bytes < needed:
        raise ValueError(f"spill_bytes={spill.size_bytes}: the plan takes {needed} or more")
    options = replace(planned, spill=spill)
    _check_spill(options)
    return options


def spill_of(directories: object, size_bytes: object, verify: object, raw: object) -> Spill | None:
    """`spill_dir`, `spill_bytes`, `verify` and `raw` as one; None: there is no directory.

    Raises:
        ValueError: for one that is not understood, or that is of no use without `spill_dir`.
    """
    size = _bytes_or_none("spill_bytes", size_bytes, least=1)
    is_raw = _flag("raw", raw)
    if not isinstance(verify, str) or verify not in _VERIFY:
        raise ValueError(f"verify={verify!r}: takes one of {', '.join(map(repr, _VERIFY))}")
    if directories is None:
        given = {"spill_bytes": size is not None, "verify": verify != "none", "raw": is_raw}
        for name in (name for name, is_given in given.items() if is_given):
            raise ValueError(f"{name} says how to spill, and there is no spill_dir")
        return None
    paths = _directories(directories)
    if size is not None and size < BLOCK_BYTES * len(paths):
        raise ValueError(f"spill_bytes={size}: takes {BLOCK_BYTES} or more for each directory")
    return Spill(directories=paths, size_bytes=size, verify=verify, raw=is_raw)


def _directories(value: object) -> tuple[Path, ...]:
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    paths = tuple(Path(one) for one in several if one and isinstance(one, str | os.PathLike))
    if not paths or len(paths) < len(several):
        raise ValueError(f"spill_dir={value!r}: takes a directory, or a list of them")
    if len(set(paths)) < len(paths):
        raise ValueError(f"spill_dir={value!r}: a directory is named twice")
    return paths


def _check_spill(options: Options) -> None:
    asked = Tier.SSD in options.tiers
    if asked and options.spill is None:
        raise ValueError("'ssd' was asked for without spill_dir: name a directory on a local disk")
    overflows = Tier.HOST in options.tiers and options.host_bytes is not None
    if options.spill is not None and not asked and not overflows:
        raise ValueError(
            "spill_dir is given, but nothing goes there: it takes placement or skeletal 'ssd', or "
            "'host' with a limit in host_bytes"
        )


def _check_host_bytes(options: Options) -> None:
    if options.host_bytes is not None and not options.tiers & {Tier.HOST, Tier.SSD}:
        raise ValueError(
            "host_bytes limits what goes to the host, but nothing does: it takes placement or "
            "skeletal 'host' or 'ssd'"
        )


def _tile_tokens(value: object) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"tile_tokens={value!r}: takes 'auto' or a positive number of tokens")
    return value


def _bytes_or_none(name: str, value: object, *, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: takes None or a number of bytes from {least} on")
    return value


def _fractions(value: object) -> dict[Placement, float]:
    example = "{'keep': 0.25, 'recompute': 0.75}"
    takes = f"takes one of {_names(Placement)}, or fractions of the tiles such as {example}"
    if isinstance(value, str):
        if value not in _values(Placement):
            raise ValueError(f"placement={value!r}: {takes}")
        return {Placement(value): 1.0}
    if not isinstance(value, Mapping) or not value or not set(value) <= set(_values(Placement)):
        raise ValueError(f"placement={value!r}: {takes}")
    fractions = {Placement(name): _fraction(name, share) for name, share in value.items()}
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"placement={dict(value)!r}: fractions must sum to 1")
    return {placement: share for placement, share in fractions.items() if share}


def _fraction(name: str, share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"placement[{name!r}]={share!r}: takes a fraction from 0 to 1")
    return float(share)


def _skeletal(value: object) -> Tier:
    names = {"keep": Tier.DEVICE, "host": Tier.HOST, "ssd": Tier.SSD}
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"skeletal={value!r}: takes one of {', '.join(map(repr, names))}")
    return names[value]


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: takes True or False")
    return value


def _values(kind: type[Placement]) -> list[str]:
    return [member.value for member in kind]


def _names(kind: type[Placement]) -> str:
    return ", ".join(repr(name) for name in _values(kind))
