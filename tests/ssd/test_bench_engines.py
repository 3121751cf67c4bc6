"""One pass of an engine: what it moves, as the kernel counts it, and the figures of an engine whose
speed is known.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ssd.bench import BenchPlan, Case, Op, engines
from ssd.bench.contracts import Rig
from ssd.bench.engines import EngineSubject
from ssd.bench.rounds import rig_of
from ssd.contracts import Attempt, EngineKind, SpillError, SpillWarning
from tests.ssd.disk import KINDS, MIB, open_descriptors, skip_where_refused

# 13 blocks and a rest; the depth divides neither.
PLAN = BenchPlan(size_bytes=13 * MIB + 4096, block_bytes=(MIB,), depths=(3,))
BLOCKS = 13


def _case(op: Op) -> Case:
    return Case(op=op, block_bytes=MIB, depth=3)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_of(tmp_path, PLAN) as rig:
        yield rig


def _counted() -> tuple[int, int]:
    """Bytes that the process had written to and read from disks, as the kernel counts them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counts = dict(line.split(": ") for line in lines)
    return int(counts["write_bytes"]), int(counts["read_bytes"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("op", "written", "read"), [("write", 13, 0), ("read", 0, 13), ("mixed", 7, 6)]
)
def test_a_pass_moves_every_block_once(
    rig: Rig, kind: EngineKind, op: str, written: int, read: int
) -> None:
    skip_where_refused(kind)
    if not rig.file.is_direct:
        pytest.skip("no direct I/O here: the kernel counts pages")
    subject = EngineSubject(kind)
    subject.measure(rig, _case(Op.WRITE))  # what was never written is not read from the disk
    before = _counted()
    subject.measure(rig, _case(Op(op)))
    after = _counted()
    # The file's times are written too, and fixed buffers are tried with a read.
    assert written * MIB <= after[0] - before[0] < written * MIB + MIB // 4
    assert read * MIB <= after[1] - before[1] < read * MIB + MIB // 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_goes_over_the_whole_file(rig: Rig, kind: EngineKind) -> None:
    skip_where_refused(kind)
    EngineSubject(kind).measure(rig, _case(Op.WRITE))
    back = os.open(f"/proc/self/fd/{rig.file.fd}", os.O_RDONLY)
    found = os.pread(back, rig.file.size_bytes, 0)
    os.close(back)
    blocks = [bytes(rig.memory[i % 3 * MIB :][:MIB]) for i in range(BLOCKS)]
    assert len(set(blocks)) == 3
    assert found == b"".join(blocks) + bytes(4096)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_open(rig: Rig, kind: EngineKind) -> None:
    skip_where_refused(kind)
    before, threads = open_descriptors(), threading.active_count()
    EngineSubject(kind).measure(rig, _case(Op.MIXED))
    assert (open_descriptors(), threading.active_count()) == (before, threads)


class _Clockwork:
    """An engine that takes `seconds` for each attempt, `depth` at a time; busy or asleep."""

    name = "clockwork"

    def __init__(
        self, depth: int, seconds: float, *, is_busy: bool, result: int | None = None
    ) -> None:
        self.depth = depth
        self._seconds, self._is_busy, self._result = seconds, is_busy, result
        self._lock = threading.Lock()

    def start(self, attempt: Attempt) -> None:
        threading.Thread(target=self._run, args=[attempt]).start()

    def fix(self, buffers: Sequence[memoryview]) -> bool:
        return False

    def close(self) -> None:
        pass

    def _run(self, attempt: Attempt) -> None:
        if self._is_busy:
            with self._lock:  # one after the other, whatever else the machine does
                start_s = time.thread_time()
                while time.thread_time() - start_s < self._seconds:
                    pass
        else:
            time.sleep(self._seconds)
        attempt.end(len(attempt.piece.buffer) if self._result is None else self._result)


def _clockwork(monkeypatch: pytest.MonkeyPatch, seconds: float, **more: Any) -> None:
    def make(files: object, kind: EngineKind, *, depth: int) -> _Clockwork:
        return _Clockwork(depth, seconds, **more)

    monkeypatch.setattr(engines, "choose_engine", make)


def test_bandwidth_is_what_was_moved_in_the_time_it_took(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _clockwork(monkeypatch, 0.05, is_busy=False)
    sample = EngineSubject(EngineKind.THREADS).measure(rig, _case(Op.WRITE))
    # 13 attempts, 3 at a time: 5 turns of 50 ms. Machines may be late, never early.
    most = BLOCKS * MIB / 0.25
    assert 0.5 * most < sample.bytes_per_s <= most
    assert sample.cpu_s_per_gb * BLOCKS * MIB / 1e9 < 0.1


def test_cpu_seconds_are_the_whole_process_s(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    _clockwork(monkeypatch, 0.02, is_busy=True)
    sample = EngineSubject(EngineKind.THREADS).measure(rig, _case(Op.READ))
    cpu_s = sample.cpu_s_per_gb * BLOCKS * MIB / 1e9
    assert 0.95 * BLOCKS * 0.02 < cpu_s < 2 * BLOCKS * 0.02


def test_a_pass_that_fails_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    _clockwork(monkeypatch, 0.0, is_busy=False, result=-errno.ENOSPC)
    with pytest.raises(SpillError, match=r"could not write 1,048,576 bytes at .*ENOSPC"):
        EngineSubject(EngineKind.THREADS).measure(rig, _case(Op.WRITE))


def test_refused_buffers_are_said_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_where_refused(EngineKind.URING)
    uring = pytest.importorskip("ssd.uring")

    def refuse(self: object, buffers: object) -> int:
        return errno.ENOMEM

    monkeypatch.setattr(uring.FixedBuffers, "replace", refuse)
    subject = EngineSubject(EngineKind.URING)
    with pytest.warns(SpillWarning, match="could not be fixed"):
        subject.measure(rig, _case(Op.WRITE))
    subject.measure(rig, _case(Op.WRITE))  # a warning would be an error
