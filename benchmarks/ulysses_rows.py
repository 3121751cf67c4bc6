"""Samples of the comparison, put together: one row per ZeRO stage.

Scope: arithmetic on samples; how rows are shown is `ulysses_tables.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.ulysses_case import Peer, Phase, UlyssesCase, UlyssesSample
from benchmarks.ulysses_wire import ulysses_bytes

MAX_TIME_RATIO = 1.0
MAX_MEMORY_RATIO = 0.7
"""What memo is to be held to, of ALST's."""

GRADIENT_TOLERANCE = 1e-5
"""Relative, in float32."""

_FORWARDS = {Peer.MEMO: 1, Peer.MEMO_SSD: 1, Peer.ALST: 2}
"""How often a step exchanges q, k, v and o on the way forward: a checkpoint does so again."""

_BACKWARDS = {Peer.MEMO: 2, Peer.MEMO_SSD: 2, Peer.ALST: 1}
"""How often on the way back: gradients of all four, and for memo q, k, v and o once more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerRow:
    """One peer's figures: of times the median over repeats and steps, of memory the rank with the
    most. `cpu_s`: of all ranks, of one step. `layer_bytes`: that all ranks sent, by layer, and
    `formula_bytes` what they are by Ulysses'.
    """

    peer: Peer
    step_s: float
    cpu_s: float
    growth_bytes: int
    layer_bytes: float
    formula_bytes: int
    gradient_error: float
    gradient_worst: str
    gradient_scale: float
    gradient_error_rescaled: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One of memo's ways beside ALST, at one of ZeRO's stages."""

    zero: int
    memo: PeerRow
    alst: PeerRow

    @property
    def time_ratio(self) -> float:
        return self.memo.step_s / self.alst.step_s

    @property
    def memory_ratio(self) -> float:
        return self.memo.growth_bytes / self.alst.growth_bytes

    @property
    def is_met(self) -> bool:
        """Whether memo is as fast, as small and as right as it is to be."""
        return (
            self.time_ratio <= MAX_TIME_RATIO
            and self.memory_ratio <= MAX_MEMORY_RATIO
            and self.is_right
        )

    @property
    def is_right(self) -> bool:
        """Whether memo's gradients are the reference's, and its exchanges the formula's."""
        return (
            self.memo.gradient_error <= GRADIENT_TOLERANCE
            and self.memo.layer_bytes == self.memo.formula_bytes
        )


def peer_row(case: UlyssesCase, peer: Peer, samples: Sequence[UlyssesSample]) -> PeerRow:
    """Of all ranks' samples of a case, both phases.

    Raises:
        ValueError: when a phase is missing.
    """
    own = [sample for sample in samples if sample.peer is peer]
    times = [sample for sample in own if sample.phase is Phase.TIME]
    peaks = [sample for sample in own if sample.phase is Phase.PEAK]
    if not times or not peaks:
        raise ValueError(f"samples of {peer} have no times or no peaks: takes both")
    first = peaks[0]
    assert first.gradient_error is not None
    assert first.gradient_scale is not None
    assert first.gradient_error_rescaled is not None
    return PeerRow(
        peer=peer,
        step_s=median(seconds for s in times if s.rank == 0 for seconds in s.step_s),
        cpu_s=case.ranks * median(seconds for s in times for seconds in s.cpu_s),
        growth_bytes=max(s.growth_bytes for s in peaks),
        layer_bytes=sum(s.sent_bytes for s in peaks) / case.layers,
        formula_bytes=layer_bytes(case, peer),
        gradient_error=first.gradient_error,
        gradient_worst=first.gradient_worst,
        gradient_scale=first.gradient_scale,
        gradient_error_rescaled=first.gradient_error_rescaled,
    )


def layer_bytes(case: UlyssesCase, peer: Peer) -> int:
    """What all ranks together send for one layer in a forward and backward."""
    once = ulysses_bytes(
        tokens=case.tokens,
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        ranks=case.ranks,
        item_bytes=4 if case.dtype == "float32" else 2,
    )
    return once * (_FORWARDS[peer] + _BACKWARDS[peer])
