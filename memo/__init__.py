"""memo: long-context training of Hugging Face models in the memory that you have.

`wrap` a model, train it as before, read the `report`, `unwrap` it; `trace` draws a step's transfers
beside its compute. Everything that memo refuses is a `MemoError` (bad argument values are
`ValueError`), everything that it does in another way than asked a `MemoWarning` (or, on a disk, a
`SpillWarning`).
"""

from memo.report import KindReport, LaneReport, Report, Wear, report
from memo.trace import trace
from memo.warning import MemoWarning
from memo.wrap import unwrap, wrap
from offload import MemoError, SpillError, TransferError
from ssd import SpillWarning

__all__ = [
    "KindReport",
    "LaneReport",
    "MemoError",
    "MemoWarning",
    "Report",
    "SpillError",
    "SpillWarning",
    "TransferError",
    "Wear",
    "report",
    "trace",
    "unwrap",
    "wrap",
]
