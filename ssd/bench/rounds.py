"""Measuring a directory: one file, written once, and every case by every engine in turn.

Scope: the file, the order, and the medians. Rounds are interleaved: all engines
take a case one after the other, each round beginning with another one, so that what else the
machine does in that time hits all alike.
"""

from __future__ import annotations

import errno
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy

from ssd.bench.contracts import BenchPlan, Case, Op, Result, Rig, Sample, Subject
from ssd.bench.engines import EngineSubject
from ssd.bench.subjects import find_subjects
from ssd.buffers import aligned_buffer
from ssd.contracts import EngineKind
from ssd.faults import spill_error
from ssd.files import close_file, open_file

OnPass = Callable[[str, Case], None]
"""Told before each pass: who, and what."""

Taken = dict[tuple[str, Case], list[Sample]]


def measure_directory(
    directory: Path,
    plan: BenchPlan,
    *,
    on_begin: Callable[[int, int], None] = lambda passes, written_bytes: None,
    on_pass: OnPass = lambda engine, case: None,
) -> list[Result]:
    """Results of all cases and engines. `on_begin` is told the passes to come and the bytes that
    they write. The file has no name and is gone afterwards, however that comes.

    Raises:
        SpillError: when the directory can't be written, has no room, or fails, and when io_uring
            was asked for by name and is refused.
        ValueError: when a block is not aligned as the file asks.
    """
    with rig_of(directory, plan) as rig:
        _check_alignment(rig, plan)
        subjects = find_subjects(rig, plan)
        cases = list(_cases(plan))
        passes = len(cases) * len(subjects) * plan.rounds
        on_begin(passes, plan.written_bytes(len(subjects)))
        _write_once(rig, plan)
        taken: Taken = {}
        for number in range(plan.rounds):
            _measure_round(rig, cases, _rotated(subjects, number), taken, on_pass)
    return [_result(directory, engine, case, samples) for (engine, case), samples in taken.items()]


# ---- the file and the memory ----


@contextmanager
def rig_of(directory: Path, plan: BenchPlan) -> Iterator[Rig]:
    """A new file of the plan's size, and memory for its largest setting."""
    _check_room(directory, plan.size_bytes)
    file = open_file(directory, plan.size_bytes)
    try:
        yield Rig(file, _random_memory(plan.in_flight_bytes))
    finally:
        close_file(file)


def _check_room(directory: Path, size_bytes: int) -> None:
    """Before reserving, which on ext4 takes all there is before it fails: others need some."""
    try:
        free_bytes = shutil.disk_usage(directory).free
    except OSError:  # opening the file says it better
        return
    if free_bytes < size_bytes:
        detail = f"{free_bytes:,} are free"
        raise spill_error(f"reserve {size_bytes:,} bytes", directory, errno.ENOSPC, detail=detail)


def _random_memory(size_bytes: int) -> memoryview:
    """Random, for disks that compress."""
    memory = aligned_buffer(size_bytes)
    memory[:] = numpy.random.default_rng(0).bytes(size_bytes)
    return memory


def _check_alignment(rig: Rig, plan: BenchPlan) -> None:
    unit_bytes = max(rig.file.alignment.offset_bytes, rig.file.alignment.memory_bytes)
    for block_bytes in plan.block_bytes:
        if block_bytes % unit_bytes:
            raise ValueError(f"block_bytes is {block_bytes}: it takes a multiple of {unit_bytes}")


def _write_once(rig: Rig, plan: BenchPlan) -> None:
    """Blocks that were written before are about twice as fast as new ones."""
    block_bytes, depth = plan.settings()[0]
    case = Case(op=Op.WRITE, block_bytes=block_bytes, depth=depth)
    EngineSubject(EngineKind.THREADS).measure(rig, case)


# ---- the order, and what came of it ----


def _cases(plan: BenchPlan) -> Iterator[Case]:
    for block_bytes, depth in plan.settings():
        for op in Op:
            yield Case(op=op, block_bytes=block_bytes, depth=depth)


def _rotated(subjects: Sequence[Subject], number: int) -> list[Subject]:
    first = number % len(subjects)
    return [*subjects[first:], *subjects[:first]]


def _measure_round(
    rig: Rig, cases: Sequence[Case], subjects: Sequence[Subject], taken: Taken, on_pass: OnPass
) -> None:
    for case in cases:
        for subject in subjects:
            on_pass(subject.name, case)
            sample = subject.measure(rig, case)
            taken.setdefault((subject.name, case), []).append(sample)


def _result(directory: Path, engine: str, case: Case, samples: Sequence[Sample]) -> Result:
    speeds = [sample.bytes_per_s for sample in samples]
    bytes_per_s = statistics.median(speeds)
    return Result(
        directory=directory,
        engine=engine,
        op=case.op,
        block_bytes=case.block_bytes,
        depth=case.depth,
        bytes_per_s=bytes_per_s,
        cpu_s_per_gb=statistics.median(sample.cpu_s_per_gb for sample in samples),
        rounds=len(samples),
        spread=(max(speeds) - min(speeds)) / bytes_per_s,
    )
