"""Predictions beside measurements: a line for each case, and how far off they are.

Scope: arithmetic on cases, and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from rich.table import Table

from benchmarks.prediction_contracts import Case, Measured, Predicted
from benchmarks.tables import NONE

MB = 1e6
MEMORY_TARGET = 0.03
TIME_TARGET = 0.15

CAPTION = (
    "Errors are predicted to measured. Memory: the most bytes of tensors on the device during one "
    "step, model states included (MB are 10^6 bytes); added: what the step adds to those. Time: "
    "forward, backward and optimizer, the median (range) of the timed steps. Waited: exposed "
    "seconds of transfers, predicted / measured. Cores: CPU time by time, low where other "
    "processes took part of the machine."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Of one case, relative: of the peak, of what the step adds to what was there, of the time."""

    peak: float
    growth: float
    time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Of all cases that were measured; absolute values of `Errors`, and how many failed."""

    cases: int
    failed: int
    worst_peak: float
    worst_growth: float
    median_time: float
    p90_time: float
    worst_time: float

    @property
    def is_met(self) -> bool:
        """Whether every peak is within 3%, and the median of times within 15%."""
        return self.worst_peak <= MEMORY_TARGET and self.median_time <= TIME_TARGET


def errors_of(case: Case) -> Errors | None:
    """None where one side is missing."""
    predicted, measured = case.predicted, case.measured
    if predicted is None or measured is None:
        return None
    return Errors(
        peak=predicted.peak_bytes / measured.peak_bytes - 1,
        growth=_growth(predicted) / _growth(measured) - 1,
        time=predicted.step_s / median(measured.step_s) - 1,
    )


def _growth(side: Predicted | Measured) -> int:
    return side.peak_bytes - side.base_bytes


def summary_of(cases: Sequence[Case]) -> Summary | None:
    """None where nothing was measured."""
    found = [errors for case in cases if (errors := errors_of(case)) is not None]
    if not found:
        return None

    def each(of: Callable[[Errors], float]) -> list[float]:
        return [abs(of(errors)) for errors in found]

    times = each(lambda errors: errors.time)
    return Summary(
        cases=len(found),
        failed=len(cases) - len(found),
        worst_peak=max(each(lambda errors: errors.peak)),
        worst_growth=max(each(lambda errors: errors.growth)),
        median_time=median(times),
        p90_time=quantiles(times, n=10, method="inclusive")[-1] if len(times) > 1 else times[0],
        worst_time=max(times),
    )


def results(cases: Sequence[Case]) -> Table:
    """One line per case."""
    table = Table(title="Predicted beside measured", caption=CAPTION, caption_justify="left")
    for name in ("model", "tokens", "placement"):
        table.add_column(name, justify="right" if name == "tokens" else "left")
    for name in ("MB", "measured", "error", "added error", "s", "measured", "error"):
        table.add_column(name, justify="right")
    for name in ("waited s", "cores"):
        table.add_column(name, justify="right")
    if any(case.problem for case in cases):
        table.add_column("what went wrong")
    for previous, case in zip([None, *cases], cases, strict=False):
        if previous is not None and (previous.model, previous.tokens) != (case.model, case.tokens):
            table.add_section()
        table.add_row(*_cells(case), *([case.problem] if case.problem else []))
    return table


def _cells(case: Case) -> list[str]:
    predicted, measured, errors = case.predicted, case.measured, errors_of(case)
    return [
        case.model,
        f"{case.tokens:,}",
        case.placement,
        NONE if predicted is None else f"{predicted.peak_bytes / MB:,.1f}",
        NONE if measured is None else f"{measured.peak_bytes / MB:,.1f}",
        NONE if errors is None else f"{errors.peak:+.2%}",
        NONE if errors is None else f"{errors.growth:+.2%}",
        NONE if predicted is None else f"{predicted.step_s:.3f}",
        NONE if measured is None else _seconds(measured),
        NONE if errors is None else f"{errors.time:+.1%}",
        _waited(predicted, measured),
        NONE if measured is None else f"{measured.cores_used:.2f}",
    ]


def _seconds(measured: Measured) -> str:
    low, high = min(measured.step_s), max(measured.step_s)
    return f"{median(measured.step_s):.3f} ({low:.3f}-{high:.3f})"


def _waited(predicted: Predicted | None, measured: Measured | None) -> str:
    sides = (None if side is None else side.exposed_s for side in (predicted, measured))
    return " / ".join(NONE if seconds is None else f"{seconds:.3f}" for seconds in sides)


def line(found: Summary) -> str:
    """The summary in a sentence or two."""
    return (
        f"{found.cases} cases ({found.failed} failed). Memory: worst error {found.worst_peak:.2%} "
        f"(of what a step adds: {found.worst_growth:.2%}). Time: median error "
        f"{found.median_time:.1%}, 90th percentile {found.p90_time:.1%}, worst "
        f"{found.worst_time:.1%}. Within {MEMORY_TARGET:.0%} of memory in every case and "
        f"{TIME_TARGET:.0%} of time in the median: {'yes' if found.is_met else 'no'}."
    )
