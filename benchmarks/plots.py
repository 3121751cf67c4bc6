"""The benchmark's results as a picture: peaks and times over the length, one line per case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from benchmarks.contracts import Shape
from benchmarks.summary import Row
from benchmarks.tables import describe
from memo.measure import MIB


def save(shape: Shape, rows: Sequence[Row], path: Path) -> None:
    """Write the picture to `path`, in the format that its suffix names."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    draw = _bars if len({row.tokens for row in rows}) == 1 else _lines
    draw(memory, rows, lambda row: row.growth_bytes and row.growth_bytes / MIB)
    memory.set_ylabel("activation peak [MiB]")
    draw(seconds, rows, lambda row: row.step_s)
    seconds.set_ylabel("forward and backward [s]")
    figure.suptitle(describe(shape), fontsize=9)
    figure.savefig(path, dpi=150)


Value = Callable[[Row], float | None]


def _lines(axes: Axes, rows: Sequence[Row], value: Value) -> None:
    for case in dict.fromkeys(row.case for row in rows):
        points = [(row.tokens, value(row)) for row in rows if row.case == case]
        known = [(tokens, y) for tokens, y in points if y is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], marker="o", label=case)
    axes.set(xlabel="tokens", xscale="log", yscale="log")
    lengths = sorted({row.tokens for row in rows})
    axes.set_xticks(lengths, labels=[f"{tokens:,}" for tokens in lengths], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks(StrMethodFormatter("{x:,g}"))
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)


def _bars(axes: Axes, rows: Sequence[Row], value: Value) -> None:
    bars = axes.barh([row.case for row in rows], [value(row) or 0.0 for row in rows])
    axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize=8)
    axes.set_xlabel(f"{rows[0].tokens:,} tokens")
    axes.invert_yaxis()
    axes.margins(x=0.15)
