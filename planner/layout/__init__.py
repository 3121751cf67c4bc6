"""Memory layout: an address for every buffer whose size and life are known beforehand.

Read `contracts.py` first, then `portfolio.py` for the order of the stages. Four things are kept
apart: a problem, a layout, the solvers (`greedy.py`, `minimise.py` over `search.py`, `mip.py`), and
`validator.py`, which knows nothing of them and passes every result. `two_level.py` lays out a
`step.py` with most layers as one block each, which `cutting.py` cuts; `table.py` reads and writes
minimalloc's CSV.
"""

from planner.layout.contracts import (
    CUDA_ALIGNMENT_BYTES,
    Buffer,
    Fit,
    Layout,
    LayoutError,
    OnProgress,
    Problem,
    Progress,
    Solution,
)
from planner.layout.portfolio import TIME_LIMIT_S, solve
from planner.layout.step import Step, Use
from planner.layout.table import TableError, read_problem, write_layout
from planner.layout.two_level import TwoLevelSolution, solve_two_level
from planner.layout.validator import violations

__all__ = [
    "CUDA_ALIGNMENT_BYTES",
    "TIME_LIMIT_S",
    "Buffer",
    "Fit",
    "Layout",
    "LayoutError",
    "OnProgress",
    "Problem",
    "Progress",
    "Solution",
    "Step",
    "TableError",
    "TwoLevelSolution",
    "Use",
    "read_problem",
    "solve",
    "solve_two_level",
    "violations",
    "write_layout",
]
