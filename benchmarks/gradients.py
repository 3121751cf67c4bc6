"""Gradient scales over ranks: weight updates under plain SGD beside those of one process.

::

    python -m benchmarks.gradients                       # each engine, mesh, family and batch
    python -m benchmarks.gradients --full --engines ddp  # all their products
    python -m benchmarks.gradients --cells --json out.json

Run from the repository root; ranks are processes on gloo, models tiny and in float32. Errors are
relative, the largest of all ranks; what is compared stands in `tests.distributed.errors.py`, the
cells in `tests/distributed/cells.py`.
In this file: the command line and the tables.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from rich.console import Console
from rich.table import Table

from tests.distributed.cells import MESHES, TORCH, ZERO, Cell, chosen_cells, every_cell
from tests.distributed.errors import UpdateError, errors_of
from tests.families.harness import TOLERANCE

ENGINES = (*TORCH, *ZERO)
LIMIT_S = 7200.0
"""Much more than all cells of one engine on one mesh take, on a busy machine too."""


@dataclass(frozen=True, slots=True)
class Row:
    """A cell trained over `ranks`."""

    ranks: int
    cell: Cell
    error: UpdateError

    @property
    def mesh(self) -> str:
        """Ranks of a sequence, times sequences at a time."""
        return f"{self.cell.degree} x {self.ranks // self.cell.degree}"

    @property
    def between_steps(self) -> str:
        turns = f"{self.cell.accumulation} turns" if self.cell.accumulation > 1 else "one turn"
        counted = ", labels counted" if self.cell.counted else ""
        return turns + (", clipped" if self.cell.clip else "") + counted


def parser() -> ArgumentParser:
    found = ArgumentParser("benchmarks.gradients", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    found.add_argument("--ranks", nargs="+", type=int, choices=(2, 4, 8), default=[2, 4, 8])
    found.add_argument(
        "--full", action="store_true", help="every family with every kind of batch and heads"
    )
    found.add_argument("--cells", action="store_true", help="show every cell, too")
    found.add_argument("--json", type=Path, help="write every cell here")
    return found


def measured(engine: str, mesh: tuple[int, int], *, full: bool) -> list[Row]:
    """The cells of an engine on a mesh, trained over ranks one after another."""
    ranks, degree = mesh
    cells = every_cell(engine, degree) if full else chosen_cells(engine, mesh)
    with TemporaryDirectory() as folder:
        errors = errors_of(cells, ranks, Path(folder), LIMIT_S)
    return [Row(ranks, cell, error) for cell, error in zip(cells, errors, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    options, console = parser().parse_args(arguments), Console()
    rows: list[Row] = []
    for engine in options.engines:
        for mesh in (mesh for mesh in MESHES if mesh[0] in options.ranks):
            start_s = monotonic()
            with console.status(f"{engine} on {mesh[0]} ranks"):
                rows += measured(engine, mesh, full=options.full)
            console.print(f"{engine} on {mesh[0]} ranks, {monotonic() - start_s:.0f} s")
    if options.cells:
        console.print(_each(rows))
    for title, key in TABLES.items():
        console.print(summary(title, rows, key))
    if options.json is not None:
        options.json.write_text(json.dumps(_plain(rows), indent=1), encoding="utf-8")
    wrong = [row for row in rows if max(row.error.total, row.error.worst) > TOLERANCE]
    console.print(f"{len(rows)} cells, {len(wrong)} of them beyond {TOLERANCE:.0e}")
    if wrong:
        raise SystemExit(1)


TABLES: dict[str, Callable[[Row], tuple[str, ...]]] = {
    "engine, ranks of a sequence x sequences": lambda row: (row.cell.engine, row.mesh),
    "engine, between steps": lambda row: (row.cell.engine, row.between_steps),
    "family, batch": lambda row: (row.cell.family, row.cell.packing),
    "heads, ranks of a sequence": lambda row: (row.cell.heads, str(row.cell.degree)),
}


def summary(title: str, rows: Iterable[Row], key: Callable[[Row], tuple[str, ...]]) -> Table:
    """The largest errors of the rows that have a key in common."""
    table = Table(title=f"Relative errors of weight updates by {title}")
    for name in (*title.split(", "), "cells", "all weights", "worst parameter"):
        table.add_column(name)
    for names, group in groupby(sorted(rows, key=key), key):
        errors = [row.error for row in group]
        total, worst = max(e.total for e in errors), max(e.worst for e in errors)
        table.add_row(*names, str(len(errors)), f"{total:.1e}", f"{worst:.1e}")
    return table


def _each(rows: Iterable[Row]) -> Table:
    table = Table("cell", "mesh", "all weights", "worst parameter")
    for row in rows:
        total, worst = row.error.total, row.error.worst
        table.add_row(str(row.cell), row.mesh, f"{total:.1e}", f"{worst:.1e}")
    return table


def _plain(rows: Iterable[Row]) -> dict[str, object]:
    versions = {name: version(name) for name in ("torch", "transformers")}
    cells = [{"ranks": r.ranks, **asdict(r.cell), **asdict(r.error)} for r in rows]
    return {"versions": versions, "tolerance": TOLERANCE, "cells": cells}


if __name__ == "__main__":
    main()
