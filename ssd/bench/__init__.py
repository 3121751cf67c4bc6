"""What a disk does for each engine: bandwidth and CPU seconds, side by side with fio.

Scope: measuring one directory, and what is best there. Showing it is `memo.bench`'s business;
keeping it is `ssd.settings`'s. Read `contracts.py` first, then `rounds.py`.
"""

from ssd.bench.best import best_of
from ssd.bench.contracts import BenchPlan, Case, Op, Result
from ssd.bench.rounds import measure_directory

__all__ = ["BenchPlan", "Case", "Op", "Result", "best_of", "measure_directory"]
