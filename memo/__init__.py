"""memo: long-context training of Hugging Face models in the memory that you have.

`wrap` a model, train it as before, read the `report`, `unwrap` it; `trace` draws a step's transfers
beside its compute. Everything that memo refuses is a `MemoError` (bad argument values are
`ValueError`), everything that it does in another way than asked a `MemoWarning`.
"""

from memo.report import KindReport, LaneReport, Report, report
from memo.trace import trace
from memo.warning import MemoWarning
from memo.wrap import unwrap, wrap
from offload import MemoError, TransferError

__all__ = [
    "KindReport",
    "LaneReport",
    "MemoError",
    "MemoWarning",
    "Report",
    "TransferError",
    "report",
    "trace",
    "unwrap",
    "wrap",
]
