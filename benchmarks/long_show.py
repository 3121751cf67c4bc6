"""The long run's result: a table, and a JSON document.

Scope: presenting. A prediction is right when every rank's peak lies within `TOLERANCE` of it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from rich.table import Table

from benchmarks.long_case import LongCase, RankResult
from benchmarks.long_plan import LongPrediction
from planner.sizes import format_bytes

TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class LongResult:
    """A run with all that its figures depend on. `wall_s`: from start to end, planning and loading
    included.
    """

    case: LongCase
    prediction: LongPrediction
    ranks: Sequence[RankResult]
    wall_s: float

    def error(self, rank: RankResult) -> float:
        """How far the prediction lies above what the rank took, relative to that."""
        return self.prediction.peak_bytes / rank.peak_bytes - 1

    @property
    def worst_error(self) -> float:
        return max((self.error(rank) for rank in self.ranks), key=abs)

    @property
    def is_predicted(self) -> bool:
        return abs(self.worst_error) <= TOLERANCE


def table(result: LongResult) -> Table:
    """A row per rank."""
    case = result.case
    shown = Table(
        title=f"{case.tokens:,} tokens over {case.ranks} ranks, {case.layers} layers of "
        f"{case.hidden}, window {case.window:,}, {case.dtype}: one step",
        caption="peak: of all tensors; resident: weights and optimizer states, and the process's "
        "resident memory above them in the step (kernels' scratch, what gloo stages); planned "
        f"{format_bytes(result.prediction.peak_bytes)}; worst {result.worst_error:+.1%}; "
        f"{result.wall_s:,.0f} s in all",
    )
    for name in ("rank", "tokens", "peak", "planned", "resident", "sent", "step", "CPU", "loss"):
        shown.add_column(name, justify="right")
    for rank in result.ranks:
        shown.add_row(
            str(rank.rank),
            f"{rank.tokens:,}",
            format_bytes(rank.peak_bytes),
            f"{result.error(rank):+.1%}",
            format_bytes(rank.base_bytes + rank.resident_bytes),
            format_bytes(sum(rank.sent_bytes.values())),
            f"{rank.step_s:,.1f} s",
            f"{rank.cpu_s:,.1f} s",
            f"{rank.loss:.4f}",
        )
    return shown


def save(result: LongResult, path: Path) -> None:
    """Write everything as JSON."""
    document = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "kernel": platform.release(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        "case": asdict(result.case),
        "prediction": asdict(result.prediction),
        "worst_error": result.worst_error,
        "wall_s": result.wall_s,
        "ranks": [{**asdict(r), "error": result.error(r)} for r in result.ranks],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
