"""What is best on a directory.

Scope: a choice among results. The slower of writing and reading counts: a step does both. Within
3%, which is what rounds differ by on a quiet machine, fewer CPU seconds win.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ssd.bench.contracts import ENGINES, Op, Result
from ssd.contracts import EngineKind
from ssd.settings import Setting

_TIE = 0.03

_ByOp = dict[Op, Result]


def best_of(results: Sequence[Result]) -> Setting | None:
    """Of one directory and our engines; None when nothing of ours was measured in all ways."""
    found = [by_op for by_op in _by_setting(results) if len(by_op) == len(Op)]
    if not found:
        return None
    top = max(map(_slower, found))
    tied = [by_op for by_op in found if _slower(by_op) >= (1 - _TIE) * top]
    return _setting(min(tied, key=_cpu_s_per_gb))


def _by_setting(results: Sequence[Result]) -> list[_ByOp]:
    settings: dict[tuple[str, int, int], _ByOp] = {}
    for result in results:
        if result.engine in ENGINES:
            key = (result.engine, result.block_bytes, result.depth)
            settings.setdefault(key, {})[result.op] = result
    return list(settings.values())


def _slower(by_op: _ByOp) -> float:
    return min(by_op[Op.WRITE].bytes_per_s, by_op[Op.READ].bytes_per_s)


def _cpu_s_per_gb(by_op: _ByOp) -> float:
    return (by_op[Op.WRITE].cpu_s_per_gb + by_op[Op.READ].cpu_s_per_gb) / 2


def _setting(by_op: _ByOp) -> Setting:
    write = by_op[Op.WRITE]
    return Setting(
        engine=EngineKind(write.engine),
        block_bytes=write.block_bytes,
        depth=write.depth,
        write_bytes_per_s=write.bytes_per_s,
        read_bytes_per_s=by_op[Op.READ].bytes_per_s,
        mixed_bytes_per_s=by_op[Op.MIXED].bytes_per_s,
        cpu_s_per_gb=_cpu_s_per_gb(by_op),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )
