"""A plan's figures beside what was measured.

Scope: plain data, and the pairing of the two. A figure that nobody measured stays without a
measurement, and says why. Both sides are one rank's, and of one pass: a forward and a backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from offload import Lane, Tier
from planner.plan import Plan

Unit = Literal["bytes", "s", "tokens/s", "share"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a plan predicts, in terms of what the runtime can measure.

    `pass_s`: of a step without the optimizer. `peak_bytes`: of the device, all that the step has
    there; of the host and the SSD, what the runtime puts there, without model states. By lane:
    `moved_bytes`, and `exposed_s` that compute waits. `ssd_written_bytes`: by activations, a step.
    `uses_ssd`: whether anything of them goes there.
    """

    plan: Plan
    pass_s: float
    peak_bytes: Mapping[Tier, int]
    moved_bytes: Mapping[Lane, int]
    exposed_s: Mapping[Lane, float]
    ssd_written_bytes: int
    uses_ssd: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a run did. `pass_s` None: no pass has ended; `peak_bytes` without what is not known, and
    None for what is known after another pass.
    `moved_bytes`, `exposed_s` and `ssd_written_bytes` are means over `passes` (0: there were none).
    """

    passes: float
    pass_s: float | None
    peak_bytes: Mapping[Tier, int | None]
    moved_bytes: Mapping[Lane, float]
    exposed_s: Mapping[Lane, float]
    ssd_written_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure twice; `measured` None: not measured, `why_not` says why."""

    name: str
    unit: Unit
    predicted: float
    measured: float | None = None
    why_not: str = ""

    @property
    def error(self) -> float | None:
        """How far the prediction lies above the measurement, relative to this; None without a
        measurement other than 0.
        """
        return self.predicted / self.measured - 1 if self.measured else None


NO_PASS = "no backward has run to its end"
FIRST_PASS = "the first pass, in which kernels are tried, is not counted"
NO_DEVICE = "tensors of a processor are not counted"
STAGED = "what is staged for the SSD is not counted"


def figures(forecast: Forecast, measured: Measured) -> tuple[Figure, ...]:
    """All that is predicted and not nothing, in the order in which it is shown."""
    return (*_peaks(forecast, measured), *_times(forecast, measured), *_bytes(forecast, measured))


def _peaks(forecast: Forecast, measured: Measured) -> Iterator[Figure]:
    reasons = {Tier.DEVICE: NO_DEVICE, Tier.HOST: STAGED}
    for tier, size_bytes in forecast.peak_bytes.items():
        is_known = tier in measured.peak_bytes and not (tier is Tier.HOST and forecast.uses_ssd)
        found = measured.peak_bytes[tier] if is_known and measured.passes else None
        if size_bytes or found:
            yield Figure(
                name=f"{tier} at its peak",
                unit="bytes",
                predicted=size_bytes,
                measured=found,
                why_not=_missed(measured) if is_known else reasons.get(tier, ""),
            )


def _missed(measured: Measured) -> str:
    return FIRST_PASS if measured.passes else NO_PASS


def _times(forecast: Forecast, measured: Measured) -> Iterator[Figure]:
    yield Figure(
        name="forward and backward",
        unit="s",
        predicted=forecast.pass_s,
        measured=measured.pass_s,
        why_not=NO_PASS,
    )
    yield from _rates(forecast, measured)
    yield from _of_lanes(
        "compute waits for {}", "s", forecast.exposed_s, measured.exposed_s, measured
    )


def _rates(forecast: Forecast, measured: Measured) -> Iterator[Figure]:
    """By the same work over the seconds of a pass: the optimizer's are in neither."""
    work, told = forecast.plan.workload, forecast.plan.predictions
    amounts: tuple[tuple[str, Unit, float], ...] = (
        ("tokens of all ranks, in a pass", "tokens/s", work.step_tokens),
        ("MFU of a pass", "share", told.mfu * told.step_s),
    )
    for name, unit, amount in amounts if forecast.pass_s else ():
        yield Figure(
            name=name,
            unit=unit,
            predicted=amount / forecast.pass_s,
            measured=amount / measured.pass_s if measured.pass_s else None,
            why_not=NO_PASS,
        )


def _bytes(forecast: Forecast, measured: Measured) -> Iterator[Figure]:
    yield from _of_lanes(
        "moved by {}", "bytes", forecast.moved_bytes, measured.moved_bytes, measured
    )
    written = {Lane.SSD_WRITE: forecast.ssd_written_bytes}
    found = {Lane.SSD_WRITE: measured.ssd_written_bytes}
    yield from _of_lanes("written to the SSD", "bytes", written, found, measured)


def _of_lanes(
    name: str,
    unit: Unit,
    predicted: Mapping[Lane, float],
    found: Mapping[Lane, float],
    measured: Measured,
) -> Iterator[Figure]:
    for lane in Lane:
        here, there = predicted.get(lane, 0.0), found.get(lane, 0.0)
        if here or there:
            yield Figure(
                name=name.format(lane),
                unit=unit,
                predicted=here,
                measured=there if measured.passes else None,
                why_not=NO_PASS,
            )
