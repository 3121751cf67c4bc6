"""memo: long-context training of Hugging Face models in the memory that you have.

`plan` a step before anything is run, `wrap` a model by the plan or by hand, train it as before,
read the `report`, `unwrap` it; `trace` draws a step's transfers beside its compute. Everything that
memo refuses is a `MemoError` (bad argument values are `ValueError`), everything that it does in
another way than asked a `MemoWarning` (or, on a disk, a `SpillWarning`).
"""

from typing import TYPE_CHECKING, Any

from memo.predicted import Figure
from memo.report import KindReport, LaneReport, Report, Wear, report
from memo.trace import trace
from memo.trainer_seam import parallelism_config
from memo.warning import MemoWarning
from memo.wrap import unwrap, wrap
from offload import MemoError, SpillError, TransferError
from planner.codec import PlanError
from planner.plan import NoPlan, Plan
from ssd import SpillWarning

if TYPE_CHECKING:
    from memo.planning.public import plan

__all__ = [
    "Figure",
    "KindReport",
    "LaneReport",
    "MemoError",
    "MemoWarning",
    "NoPlan",
    "Plan",
    "PlanError",
    "Report",
    "SpillError",
    "SpillWarning",
    "TransferError",
    "Wear",
    "parallelism_config",
    "plan",
    "report",
    "trace",
    "unwrap",
    "wrap",
]


def __getattr__(name: str) -> Any:
    # Planning imports a solver, which training without a plan can do without.
    if name == "plan":
        from memo.planning.public import plan

        return plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
