"""Who is measured: the engines and the fio that work here.

Scope: trying. What was asked for by name has to work; what was not is left out, and said.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

from ssd.bench.contracts import ENGINES, BenchPlan, Case, Op, Rig, Subject
from ssd.bench.engines import EngineSubject
from ssd.bench.fio import FioSubject, find_fio
from ssd.choice import choose_engine
from ssd.contracts import EngineKind, SpillError, SpillWarning


def find_subjects(rig: Rig, plan: BenchPlan) -> list[Subject]:
    """Ours first. The file's first bytes are overwritten.

    Raises:
        SpillError: when an engine that was asked for by name does not work.
    """
    kinds = plan.engines or ENGINES
    subjects: list[Subject] = [EngineSubject(kind) for kind in kinds if _works(rig, plan, kind)]
    program = find_fio() if plan.fio else None
    if program is not None and _fio_works(program, rig, plan):
        subjects += [FioSubject(program, large_pages=large) for large in (False, True)]
    return subjects


def _works(rig: Rig, plan: BenchPlan, kind: EngineKind) -> bool:
    try:
        choose_engine([rig.file], kind).close()
    except SpillError as error:
        if plan.engines is not None:
            raise
        _warn_left_out(error)
        return False
    return True


def _fio_works(program: str, rig: Rig, plan: BenchPlan) -> bool:
    """Some builds have no io_uring, and some kernels refuse it."""
    block_bytes, _ = plan.settings()[0]
    small = Rig(replace(rig.file, size_bytes=block_bytes), rig.memory)
    try:
        FioSubject(program, large_pages=False).measure(
            small, Case(op=Op.WRITE, block_bytes=block_bytes, depth=1)
        )
    except SpillError as error:
        _warn_left_out(error)
        return False
    return True


def _warn_left_out(error: SpillError) -> None:
    warnings.warn(f"left out: {error}", SpillWarning, stacklevel=6)
