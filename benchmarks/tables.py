"""The benchmark's results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.contracts import Hotspot, Profile, Shape
from benchmarks.limits import Longest
from benchmarks.summary import Row
from memo.measure import MIB

CAPTION = (
    "Step: forward and backward of one sequence, no optimizer; median (range). "
    "Activation peak: the highest memory of the process during one full step minus its memory "
    "before, when weights and gradient buffers are already there ({method}; in a process of its "
    "own, in which malloc gives every freed block back at once). "
    "Process: the highest resident memory of the timed process, with malloc as it comes. "
    "Cores: CPU time by time, low where other processes took part of the machine. "
    "On a CPU, device and host memory are one: what goes to the host still counts. "
    "Ratios are to plain in this run."
)
NONE = "-"


def results(shape: Shape, rows: Sequence[Row], method: str) -> Table:
    """One line per case and length."""
    table = Table(
        title=describe(shape), caption=CAPTION.format(method=method), caption_justify="left"
    )
    for name in ("tokens", "case"):
        table.add_column(name)
    for name in ("step s", "/ plain", "cores", "activation peak MiB", "/ plain", "process MiB"):
        table.add_column(name, justify="right")
    table.add_column("tokens/s", justify="right")
    table.add_column("loss", justify="right")
    if any(row.note for row in rows):
        table.add_column("what went wrong")
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous is not None and previous.tokens != row.tokens:
            table.add_section()
        table.add_row(*_cells(row), *([row.note] if row.note else []))
    return table


def describe(shape: Shape) -> str:
    what = f"vocabulary {shape.vocab:,}, labels" if shape.head else "body, mean square"
    return (
        f"Llama, random weights, {shape.layers} layers, hidden {shape.hidden}, intermediate "
        f"{shape.intermediate}, {shape.heads} heads, {shape.kv_heads} kv heads, "
        f"{shape.dtype}; {what}"
    )


def _cells(row: Row) -> list[str]:
    speed = None if row.step_s is None else row.tokens / row.step_s
    return [
        f"{row.tokens:,}",
        row.case,
        _seconds(row),
        _number(row.step_ratio, ".3f"),
        _number(row.cores_used, ".2f"),
        _mib(row.growth_bytes),
        _number(row.growth_ratio, ".3f"),
        _mib(row.process_peak_bytes),
        _number(speed, ",.0f"),
        _number(row.loss, ".4f"),
    ]


def _seconds(row: Row) -> str:
    if row.step_s is None or row.step_range_s is None:
        return NONE
    low, high = row.step_range_s
    return f"{row.step_s:.2f} ({low:.2f}-{high:.2f})"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _mib(value_bytes: int | None) -> str:
    return NONE if value_bytes is None else f"{value_bytes / MIB:,.0f}"


def longest(shape: Shape, found: Sequence[Longest], limit_bytes: int) -> Table:
    """One line per case: the longest sequence that it trained within the limit."""
    caption = (
        "The kernel refuses the process more than the limit (RLIMIT_DATA: private writable "
        "memory; weights, gradients and the interpreter count). "
        "One step each, forward and backward."
    )
    title = f"Longest sequence within {limit_bytes / MIB:,.0f} MiB. {describe(shape)}"
    table = Table(title=title, caption=caption, caption_justify="left")
    table.add_column("case")
    for name in ("fits, tokens", "fails at, tokens", "step s at the longest"):
        table.add_column(name, justify="right")
    table.add_column("what went wrong")
    for item in found:
        fails = NONE if item.fails_tokens is None else f"{item.fails_tokens:,}"
        step_s = _number(item.step_s, ".2f")
        table.add_row(item.case, f"{item.fits_tokens:,}", fails, step_s, item.error)
    return table


def profile(case: str, tokens: int, found: Profile, listed: int = 15) -> list[Table]:
    """Time by kind of work and by operator, and who holds memory at the peak."""
    title = f"{case}, {tokens:,} tokens"
    return [
        _times(f"{title}: time by kind of work", found.groups, found.total_self_s),
        _times(f"{title}: time by operator", found.operators[:listed], found.total_self_s),
        _holders(f"{title}: alive at the peak", found.holders[:listed], found.peak_bytes),
    ]


def _times(title: str, spots: Sequence[Hotspot], total_s: float) -> Table:
    table = Table(title=title, caption=f"{total_s:.2f} s of operators' own time in all")
    table.add_column("operator")
    for name in ("calls", "own s", "share"):
        table.add_column(name, justify="right")
    for spot in spots:
        share = f"{100 * spot.self_s / total_s:.1f}%"
        table.add_row(spot.name, f"{spot.calls:,}", f"{spot.self_s:.3f}", share)
    return table


def _holders(title: str, spots: Sequence[Hotspot], peak_bytes: int) -> Table:
    table = Table(title=title, caption=f"{peak_bytes / MIB:,.1f} MiB allocated by the step in all")
    table.add_column("allocated by (autograd node: operator)")
    for name in ("blocks", "MiB each", "MiB", "share"):
        table.add_column(name, justify="right")
    for spot in spots:
        share = f"{100 * spot.peak_bytes / peak_bytes:.1f}%"
        each, total = spot.peak_bytes / spot.calls / MIB, spot.peak_bytes / MIB
        table.add_row(spot.name, f"{spot.calls:,}", f"{each:,.1f}", f"{total:,.1f}", share)
    return table
