"""Layouts as tables for the terminal.

Scope: rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One layout. `reserved_bytes`: of PyTorch's caching allocator for the same tensors; `layout_s`
    wall time and `layout_cpu_s` processor time of everything but tracing, `trace_s` of tracing.
    """

    name: str
    buffers: int
    lower_bound_bytes: int
    height_bytes: int
    solver: str
    layout_s: float
    layout_cpu_s: float
    tokens: int | None = None
    placement: str | None = None
    reserved_bytes: int | None = None
    trace_s: float | None = None
    capacity_bytes: int | None = None

    @property
    def gap(self) -> float:
        return (self.height_bytes - self.lower_bound_bytes) / max(1, self.height_bytes)

    @property
    def proof(self) -> str:
        return "optimal" if self.height_bytes == self.lower_bound_bytes else f"gap {self.gap:.3%}"


def line(row: Row) -> str:
    """One layout while others are still to come."""
    what = [row.name, "" if row.tokens is None else f"{row.tokens >> 10}K", row.placement or ""]
    return f"{' '.join(filter(None, what))}: {row.proof}, {row.solver}, {row.layout_s:.1f} s"


def steps_table(rows: Sequence[Row]) -> Table:
    """Of traced steps."""
    names = ("model", "tokens", "placement", "buffers", "bound GiB", "height GiB", "", "reserved")
    table = _table((*names, "trace s", "layout s", "CPU s", "solver"))
    for row in rows:
        table.add_row(
            row.name,
            f"{(row.tokens or 0) >> 10}K",
            row.placement,
            f"{row.buffers:,}",
            f"{row.lower_bound_bytes / _GIB:.3f}",
            f"{row.height_bytes / _GIB:.3f}",
            row.proof,
            f"{(row.reserved_bytes or 0) / row.lower_bound_bytes - 1:+.1%}",
            f"{row.trace_s or 0:.1f}",
            f"{row.layout_s:.1f}",
            f"{row.layout_cpu_s:.1f}",
            row.solver,
        )
    return table


def instances_table(rows: Sequence[Row]) -> Table:
    """Of minimalloc's instances."""
    names = ("instance", "buffers", "bound", "height", "of capacity", "layout s", "CPU s", "solver")
    table = _table(names)
    for row in rows:
        share = "" if row.capacity_bytes is None else f"{row.height_bytes / row.capacity_bytes:.4f}"
        table.add_row(
            row.name,
            f"{row.buffers:,}",
            f"{row.lower_bound_bytes:,}",
            f"{row.height_bytes:,}",
            share,
            f"{row.layout_s:.1f}",
            f"{row.layout_cpu_s:.1f}",
            row.solver,
        )
    return table


def _table(names: Sequence[str]) -> Table:
    table = Table()
    for name in names:
        table.add_column(name, no_wrap=True)
    return table
