"""What the lanes did in a step, and how the peak grows with the layers: rows and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from benchmarks import summary
from benchmarks.cases import is_memo
from benchmarks.contracts import Phase, Sample, Shape
from benchmarks.tables import NONE, describe
from memo.measure import MIB
from offload import Lane

KEPT = "memo:recompute"
"""What the disk is compared with: x and o kept on the device."""

GB = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneRow:
    """A wrapped case at one length, medians over its processes; bytes and seconds are of a step.
    `kept_ratio` is its step's time to that of `KEPT`; bandwidths are while the disk worked.
    """

    case: str
    tokens: int
    step_s: float
    kept_ratio: float | None
    plain_ratio: float | None
    exposed_s: float
    d2h_bytes: int
    written_bytes: int
    read_bytes: int
    write_bytes_per_s: float | None
    read_bytes_per_s: float | None
    growth_bytes: int | None


def rows(samples: Sequence[Sample]) -> list[LaneRow]:
    """One row per wrapped case and length, in the order of `summary.rows`."""
    found = summary.rows(samples)
    kept = {row.tokens: row.step_s for row in found if row.case == KEPT}
    return [
        _row(row, samples, kept.get(row.tokens))
        for row in found
        if is_memo(row.case) and row.step_s is not None
    ]


def _row(row: summary.Row, samples: Sequence[Sample], kept_s: float | None) -> LaneRow:
    mine = [
        sample
        for sample in samples
        if (sample.case, sample.tokens, sample.phase) == (row.case, row.tokens, Phase.TIME)
    ]
    assert row.step_s is not None
    return LaneRow(
        case=row.case,
        tokens=row.tokens,
        step_s=row.step_s,
        kept_ratio=None if not kept_s else row.step_s / kept_s,
        plain_ratio=row.step_ratio,
        exposed_s=median(sample.exposed_s or 0.0 for sample in mine),
        d2h_bytes=_moved_bytes(mine, Lane.D2H),
        written_bytes=_moved_bytes(mine, Lane.SSD_WRITE),
        read_bytes=_moved_bytes(mine, Lane.SSD_READ),
        write_bytes_per_s=_bytes_per_s(mine, Lane.SSD_WRITE),
        read_bytes_per_s=_bytes_per_s(mine, Lane.SSD_READ),
        growth_bytes=row.growth_bytes,
    )


def _moved_bytes(samples: Sequence[Sample], lane: Lane) -> int:
    uses = [sample.lanes[lane].moved_bytes for sample in samples if lane in sample.lanes]
    return round(median(uses)) if uses else 0


def _bytes_per_s(samples: Sequence[Sample], lane: Lane) -> float | None:
    uses = [sample.lanes[lane] for sample in samples if lane in sample.lanes]
    rates = [use.moved_bytes / use.busy_s for use in uses if use.busy_s > 0]
    return median(rates) if rates else None


def lanes(shape: Shape, samples: Sequence[Sample]) -> Table:
    """One line per wrapped case and length."""
    table = Table(
        title=f"Lanes. {describe(shape)}",
        caption="Bytes are of a step; GB/s are while the disk worked. Exposed: compute waited.",
        caption_justify="left",
    )
    for name in ("tokens", "case"):
        table.add_column(name)
    for name in (
        "step s",
        "/ recompute, kept",
        "exposed s",
        "share",
        "to host MB",
        "written MB",
        "read MB",
        "write GB/s",
        "read GB/s",
    ):
        table.add_column(name, justify="right")
    for row in rows(samples):
        table.add_row(*_cells(row))
    return table


def _cells(row: LaneRow) -> list[str]:
    rates = (row.write_bytes_per_s, row.read_bytes_per_s)
    return [
        f"{row.tokens:,}",
        row.case,
        f"{row.step_s:.2f}",
        NONE if row.kept_ratio is None else f"{row.kept_ratio:.3f}",
        f"{row.exposed_s:.4f}",
        f"{row.exposed_s / row.step_s:.2%}",
        *(f"{size / 1e6:,.1f}" for size in (row.d2h_bytes, row.written_bytes, row.read_bytes)),
        *(NONE if rate is None else f"{rate / GB:.2f}" for rate in rates),
    ]


def growth(shape: Shape, samples: Sequence[Sample]) -> Table:
    """One line per case: its activation peak at each number of layers, and the last to the
    first.
    """
    table = Table(title=f"Activation peak by layers. {describe(shape)}", title_justify="left")
    table.add_column("case")
    layers = sorted({sample.layers for sample in samples if sample.layers is not None})
    for number in layers:
        table.add_column(f"{number} layers, MiB", justify="right")
    table.add_column(f"{layers[-1]} / {layers[0]}", justify="right")
    for case in dict.fromkeys(sample.case for sample in samples):
        peaks = [_peak(samples, case, number) for number in layers]
        shown = [NONE if peak is None else f"{peak / MIB:,.0f}" for peak in peaks]
        first, last = peaks[0], peaks[-1]
        ratio = NONE if not first or last is None else f"{last / first:.3f}"
        table.add_row(case, *shown, ratio)
    return table


def _peak(samples: Sequence[Sample], case: str, layers: int) -> int | None:
    found = [s.growth_bytes for s in samples if (s.case, s.layers) == (case, layers)]
    known = [peak for peak in found if peak is not None]
    return round(median(known)) if known else None
