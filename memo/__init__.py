"""memo: long-context training of Hugging Face models in the memory that you have.

Four names: `wrap` a model, train it as before, read the `report`, `unwrap` it. Everything that memo
refuses is a `MemoError` (bad argument values are `ValueError`), everything that it does in another
way than asked a `MemoWarning`.
"""

from memo.report import KindReport, Report, report
from memo.warning import MemoWarning
from memo.wrap import unwrap, wrap
from offload import MemoError

__all__ = ["KindReport", "MemoError", "MemoWarning", "Report", "report", "unwrap", "wrap"]
