"""What the GPU benchmark's samples say: rows of timed steps, and the claims that they bear on.

Scope: arithmetic on samples; `gpu_tables` shows it. What was not measured stays None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks import flops
from benchmarks.cases import ALST, OFFLOAD
from benchmarks.contracts import Outcome, Phase, Sample
from benchmarks.gpu_plan import OURS
from benchmarks.limits import Longest


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRow:
    """A case at a length. `mfu` is over the card's measured matmul rate, `data_sheet_mfu` over its
    data sheet's; `exposed` is the share of a step in which compute waited for transfers; `speedup`
    is in tokens a second over checkpointing with offload.
    """

    case: str
    tokens: int
    layers: int | None
    step_s: float | None
    step_range_s: tuple[float, float] | None
    tokens_per_s: float | None
    mfu: float | None
    data_sheet_mfu: float | None
    allocated_bytes: int | None
    reserved_bytes: int | None
    host_bytes: int | None
    exposed: float | None
    speedup: float | None
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Something that memo promises, and what was measured of it (None: it was not)."""

    text: str
    least: float | None = None
    most: float | None = None
    measured: float | None

    @property
    def holds(self) -> bool | None:
        if self.measured is None:
            return None
        above = self.least is None or self.measured >= self.least
        return above and (self.most is None or self.measured < self.most)


def matmul_rate(samples: Sequence[Sample]) -> float | None:
    """The card's, measured first."""
    rates = [s.matmul_flops_per_s for s in samples if s.phase is Phase.RATE]
    return rates[0] if rates else None


def gpu_rows(samples: Sequence[Sample], card: str) -> list[GpuRow]:
    """A row for each timed case, by length, in the order in which they came."""
    timed = [sample for sample in samples if sample.phase is Phase.TIME]
    rate, peak = matmul_rate(samples), flops.peak_flops_per_s(card)
    peers = {s.tokens: _step_s(s) for s in timed if s.case == OFFLOAD}
    found = [_row(sample, rate, peak, peers.get(sample.tokens)) for sample in timed]
    return sorted(found, key=lambda row: row.tokens)


def _row(sample: Sample, rate: float | None, peak: float | None, peer_s: float | None) -> GpuRow:
    step_s = _step_s(sample)
    flops_per_s = _ratio(sample.step_flops, step_s)
    return GpuRow(
        case=sample.case,
        tokens=sample.tokens,
        layers=sample.layers,
        step_s=step_s,
        step_range_s=(min(sample.step_s), max(sample.step_s)) if sample.step_s else None,
        tokens_per_s=_ratio(sample.tokens, step_s),
        mfu=_ratio(flops_per_s, rate),
        data_sheet_mfu=_ratio(flops_per_s, peak),
        allocated_bytes=sample.allocated_bytes,
        reserved_bytes=sample.reserved_bytes,
        host_bytes=sample.host_bytes,
        exposed=_ratio(sample.exposed_s, step_s),
        speedup=_ratio(peer_s, step_s),
        note="" if sample.outcome is Outcome.OK else f"{sample.outcome}: {sample.message}",
    )


def _step_s(sample: Sample) -> float | None:
    return median(sample.step_s) if sample.step_s else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def claims(rows: Sequence[GpuRow], found: Sequence[Longest], claim_tokens: int) -> list[Claim]:
    """What is promised of x and o on the host, at the worst of the lengths that count."""
    ours = [row for row in rows if row.case == OURS and row.tokens >= claim_tokens]
    where = f"at {claim_tokens:,} tokens and above"
    return [
        Claim(
            text=f"tokens a second over checkpointing with CPU offload, {where}",
            least=1.25,
            measured=_worst([row.speedup for row in ours], min),
        ),
        Claim(
            text=f"MFU over the measured matmul rate, {where}",
            least=0.5,
            measured=_worst([row.mfu for row in ours], min),
        ),
        Claim(
            text=f"share of a step that waits for transfers, {where}",
            most=0.03,
            measured=_worst([row.exposed for row in ours], max),
        ),
        *(
            Claim(text=f"longest sequence over {text}", least=2.0, measured=_longer(found, case))
            for case, text in (
                (OFFLOAD, "checkpointing with CPU offload"),
                (ALST, "the same with ALST's tiled MLP and loss"),
            )
        ),
    ]


def _worst(values: Sequence[float | None], worst: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return worst(known) if known else None


def _longer(found: Sequence[Longest], case: str) -> float | None:
    """How much longer ours is, on the device: what it moves to the host needs a host for it."""
    tokens = {item.case: item.fits_tokens for item in found}
    return _ratio(tokens.get(OURS), tokens.get(case)) if tokens.get(OURS) else None
