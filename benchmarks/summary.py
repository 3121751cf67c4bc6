"""Medians and ratios of samples, as plain rows; `tables` and `plots` show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from benchmarks.cases import PLAIN
from benchmarks.contracts import Outcome, Phase, Sample

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One case at one length; None where it was not measured or did not fit."""

    case: str
    tokens: int
    step_s: float | None
    step_range_s: tuple[float, float] | None
    cores_used: float | None
    growth_bytes: int | None
    process_peak_bytes: int | None
    loss: float | None
    step_ratio: float | None
    growth_ratio: float | None
    note: str


def rows(samples: Sequence[Sample]) -> list[Row]:
    """One row per case and length, in the order in which they first came."""
    measured = [sample for sample in samples if sample.phase in (Phase.TIME, Phase.PEAK)]
    keys = list(dict.fromkeys((sample.tokens, sample.case) for sample in measured))
    plain = {tokens: _row(measured, tokens, PLAIN, None) for tokens, _ in keys}
    return [
        _row(measured, tokens, case, plain[tokens])
        for tokens, case in sorted(keys, key=lambda key: key[0])
    ]


def _row(samples: Sequence[Sample], tokens: int, case: str, plain: Row | None) -> Row:
    mine = [sample for sample in samples if (sample.tokens, sample.case) == (tokens, case)]
    seconds = [second for sample in mine for second in sample.step_s]
    step_s = median(seconds) if seconds else None
    cores = [sample.cores_used for sample in mine if sample.cores_used is not None]
    growth_bytes = _last(sample.growth_bytes for sample in mine)
    return Row(
        case=case,
        tokens=tokens,
        step_s=step_s,
        step_range_s=(min(seconds), max(seconds)) if seconds else None,
        cores_used=median(cores) if cores else None,
        growth_bytes=growth_bytes,
        process_peak_bytes=_last(
            sample.process_peak_bytes for sample in mine if sample.phase is Phase.TIME
        ),
        loss=_last(sample.loss for sample in mine),
        step_ratio=_ratio(step_s, plain.step_s if plain else None),
        growth_ratio=_ratio(growth_bytes, plain.growth_bytes if plain else None),
        note=_note(mine),
    )


def _last(values: Iterable[T | None]) -> T | None:
    return next((value for value in reversed(list(values)) if value is not None), None)


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _note(samples: Iterable[Sample]) -> str:
    bad = [sample for sample in samples if sample.outcome is not Outcome.OK]
    if not bad:
        return ""
    last_line = (bad[0].message.strip().splitlines() or [""])[-1]
    return f"{bad[0].phase}: {bad[0].outcome}: {last_line}"
