"""How a report reads in a terminal.

Scope: text. What the numbers are is `report.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table

from memo.planning.figures import STORED
from memo.predicted import Figure
from offload import Placement, Tier

if TYPE_CHECKING:
    from memo.report import Report


def shown(report: Report) -> Iterator[RenderableType]:
    """The report, part by part."""
    yield _table(report)
    yield _peaks(report)
    yield from _lanes(report)
    yield from _wear(report)
    if report.plan is not None:
        yield _predicted(report.predicted)
        if report.plan.swap.stored in STORED:
            yield f"plan: {STORED[report.plan.swap.stored]}"
        yield from (f"plan: {note}" for note in report.plan.notes)
    yield from (f"attention: {kernel} for {shape}" for shape, kernel in report.attention.items())
    for note, times in report.notes.items():
        yield f"note ({times}x): {note}"


def _table(report: Report) -> Table:
    table = Table(title=f"memo: tiles of {report.tile_tokens or '?'} tokens", title_justify="left")
    for name in (
        "layer class",
        "layers",
        "runs",
        "calls",
        "tiles kept / host / ssd / recomputed",
        "x and o",
        "stored",
    ):
        table.add_column(name, overflow="fold")
    for kind in report.kinds:
        table.add_row(
            kind.kind,
            str(kind.layers),
            "tiled" if kind.tiled else f"whole: {kind.reason}",
            str(kind.calls),
            " / ".join(str(kind.tiles.get(placement, 0)) for placement in Placement),
            _bytes(kind.skeletal_bytes),
            _bytes(kind.stored_bytes),
        )
    return table


def _peaks(report: Report) -> str:
    peaks = ", ".join(f"{tier} {decimal(size)}" for tier, size in report.peak_bytes.items())
    moved = ", ".join(f"to {tier} {decimal(size)}" for tier, size in report.moved_bytes.items())
    device = report.device_peak_bytes
    process = (
        f"; device memory of the process at its peak: {decimal(device)}"
        if device is not None
        else ""
    )
    return f"stored at the peak: {peaks}; moved: {moved}{process}"


def _lanes(report: Report) -> Iterator[str]:
    for name, lane in report.lanes.items():
        yield (
            f"{name}: {decimal(lane.moved_bytes)} in {lane.copies} copies, "
            f"busy {lane.busy_s:.3f} s, waited {lane.waited_s:.3f} s; "
            f"compute waited for it {lane.exposed_s:.3f} s"
        )
    if report.lanes:
        yield (
            f"forwarded: {decimal(report.forwarded_bytes)}; in flight beside compute at the peak: "
            f"{decimal(report.in_flight_peak_bytes)}; memory on the host: "
            f"{decimal(report.host_memory_bytes)}"
        )


def _wear(report: Report) -> Iterator[str]:
    wear = report.wear
    if wear is None:
        return
    yield (
        f"disk: {decimal(wear.bytes_per_pass)} written a pass, {decimal(wear.total_bytes)} since "
        f"wrap, {decimal(report.spared_bytes)} spared; {decimal(wear.spool_bytes)} reserved"
    )
    if wear.days is not None:
        yield f"disk: going on like this, {wear.endurance_tbw:g} TBW last {wear.days:,.0f} days"


def _predicted(figures: tuple[Figure, ...]) -> Table:
    table = Table(title="planned beside measured, of one pass", title_justify="left")
    for name in ("", "planned", "measured", "planned is off by"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for figure in figures:
        found, error = figure.measured, figure.error
        table.add_row(
            figure.name,
            _amount(figure, figure.predicted),
            f"not measured: {figure.why_not}" if found is None else _amount(figure, found),
            "" if error is None else f"{error:+.1%}",
        )
    return table


def _amount(figure: Figure, value: float) -> str:
    if figure.unit == "bytes":
        return decimal(round(value))
    if figure.unit == "share":
        return f"{value:.1%}"
    return f"{value:,.0f} tokens/s" if figure.unit == "tokens/s" else f"{value:.3g} s"


def _bytes(sizes: dict[Tier, int]) -> str:
    return ", ".join(f"{decimal(size)} {tier}" for tier, size in sizes.items()) or "0"
