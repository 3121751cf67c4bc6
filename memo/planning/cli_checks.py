"""Options of `memo plan` that contradict each other, told before a model is read.

Scope: refusals. What a plan takes is `request.py`'s to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from planner.sizes import parse_tokens

_EMULATED = frozenset(
    ("model", "tokens", "sequence_parallel", "dtype", "tile_tokens", "as_json", "emulate_rank")
)
"""Parameters that a rank is run by."""


def check_together(
    tokens: str | None, sweep: Sequence[str] | None, files: Mapping[str, Path | None]
) -> None:
    """Check lengths, and `files` to be written, by option.

    Raises:
        ValueError: for both or neither of the lengths, a number of tokens that is none, and a file
            that cannot be.
    """
    if (tokens is None) == (not sweep):
        raise ValueError("takes either --tokens or --sweep tokens=..., one of them")
    if tokens is not None:
        parse_tokens(tokens)
    given = {name: path for name, path in files.items() if path is not None}
    for name, path in given.items():
        if sweep:
            raise ValueError(f"{name} takes one plan, and --sweep makes several")
        _check_file(name, path)
    if len({path.absolute() for path in given.values()}) < len(given):
        raise ValueError(f"{' and '.join(given)} are written to files of their own, not to one")


def check_emulation(ctx: typer.Context) -> None:
    """Refuse what emulating a rank would pass over.

    Raises:
        ValueError: for an option that was given and is none of those it takes; names it.
    """
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        if param.name in _EMULATED or source is None or source.name == "DEFAULT":
            continue
        raise ValueError(
            f"{max(param.opts, key=len)} is not taken by --emulate-rank, which runs a rank's work "
            "on this machine: it takes --tokens, --sequence-parallel, --dtype, --tile-tokens and "
            "--json"
        )


def _check_file(name: str, path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{name} is {path}: takes a file, and that is a folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{name} is {path}: there is no such folder")
