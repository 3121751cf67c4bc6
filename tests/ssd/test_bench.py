"""A directory measured: all cases, in turn, medians; the file gone; and each way to fail told."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ssd import choice
from ssd.bench import BenchPlan, Case, Op, measure_directory, rounds
from ssd.bench.contracts import Rig, Sample
from ssd.contracts import Engine, EngineKind, SpillError, SpillWarning, SpoolFile
from tests.ssd.disk import (
    MIB,
    open_descriptors,
    public_folder,
    run_or_skip,
    skip_where_refused,
    small_disk,
)

PLAN = BenchPlan(
    size_bytes=13 * MIB + 4096, block_bytes=(MIB, 3 * MIB // 4), depths=(2, 3), rounds=2, fio=False
)
NOBODY = 65534


class _Scripted:
    """A subject whose passes go as they are told."""

    def __init__(self, name: str, speeds: list[float], log: list[tuple[str, Case]]) -> None:
        self.name = name
        self._speeds, self._log = speeds, log
        self._passes: dict[Case, int] = {}

    def measure(self, rig: Rig, case: Case) -> Sample:
        self._log.append((self.name, case))
        number = self._passes.get(case, 0)
        self._passes[case] = number + 1
        speed = self._speeds[number]
        return Sample(bytes_per_s=speed, cpu_s_per_gb=1 / speed)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Case]]:
    """The passes of two scripted subjects, in order."""
    log: list[tuple[str, Case]] = []
    scripted = [_Scripted("a", [1.0, 100.0, 10.0], log), _Scripted("b", [5.0, 4.0, 3.0], log)]
    monkeypatch.setattr(rounds, "find_subjects", lambda rig, plan: scripted)
    return log


def test_every_case_is_measured_for_every_engine(tmp_path: Path) -> None:
    skip_where_refused(EngineKind.URING)
    begun: list[tuple[int, int]] = []
    passes: list[tuple[str, Case]] = []
    results = measure_directory(
        tmp_path,
        PLAN,
        on_begin=lambda *told: begun.append(told),
        on_pass=lambda *told: passes.append(told),
    )
    expected = {
        (engine, op, block, depth)
        for engine in ("io_uring", "threads")
        for op in ("write", "read", "mixed")
        for block, depth in ((MIB, 2), (MIB, 3), (3 * MIB // 4, 2), (3 * MIB // 4, 3))
    }
    assert {(r.engine, r.op, r.block_bytes, r.depth) for r in results} == expected
    assert len(results) == len(expected)
    assert all(r.bytes_per_s > 0 and r.cpu_s_per_gb > 0 and r.spread >= 0 for r in results)
    assert all((r.directory, r.rounds) == (tmp_path, 2) for r in results)
    assert begun == [(2 * len(expected), PLAN.written_bytes(2))]
    assert len(passes) == 2 * len(expected)
    keys = {"engine", "op", "block_bytes", "depth", "bytes_per_s", "cpu_s_per_gb"}
    assert all(keys <= result.as_json().keys() for result in results)


def test_medians_not_means_and_the_spread_over_them(
    tmp_path: Path, log: list[tuple[str, Case]]
) -> None:
    plan = BenchPlan(size_bytes=8 * MIB, block_bytes=(MIB,), depths=(2,), rounds=3)
    for result in measure_directory(tmp_path, plan):
        speed, spread = {"a": (10.0, 9.9), "b": (4.0, 0.5)}[result.engine]
        assert (result.bytes_per_s, result.cpu_s_per_gb) == (speed, 1 / speed)
        assert result.spread == pytest.approx(spread)
        assert result.rounds == 3


def test_engines_take_a_case_in_turn_and_rounds_begin_with_another(
    tmp_path: Path, log: list[tuple[str, Case]]
) -> None:
    plan = BenchPlan(size_bytes=8 * MIB, block_bytes=(MIB,), depths=(1, 2), rounds=3)
    measure_directory(tmp_path, plan)
    cases = [Case(op=op, block_bytes=MIB, depth=depth) for depth in (1, 2) for op in Op]
    orders = ("ab", "ba", "ab")
    assert log == [(name, case) for order in orders for case in cases for name in order]


def test_the_file_was_written_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bytes] = []

    class Looking(_Scripted):
        def measure(self, rig: Rig, case: Case) -> Sample:
            fd = os.open(f"/proc/self/fd/{rig.file.fd}", os.O_RDONLY)
            found.append(os.pread(fd, rig.file.size_bytes, 0))
            os.close(fd)
            return super().measure(rig, case)

    looking = Looking("a", [1.0], [])
    monkeypatch.setattr(rounds, "find_subjects", lambda rig, plan: [looking])
    plan = BenchPlan(size_bytes=8 * MIB, block_bytes=(MIB,), depths=(2,), rounds=1)
    measure_directory(tmp_path, plan)
    blocks = {found[0][start : start + 4096] for start in range(0, 8 * MIB, MIB)}
    assert bytes(4096) not in blocks
    assert len(blocks) == 2  # one for each buffer in flight


@pytest.mark.parametrize("how", [None, KeyboardInterrupt, SpillError])
def test_nothing_is_left_behind(tmp_path: Path, how: type[BaseException] | None) -> None:
    before, passes = open_descriptors(), 0

    def on_pass(engine: str, case: Case) -> None:
        nonlocal passes
        passes += 1
        if passes == 3 and how is KeyboardInterrupt:
            raise KeyboardInterrupt
        if passes == 3 and how is SpillError:
            raise SpillError("ill", directory=tmp_path, operation="test")

    with _raises(how):
        measure_directory(tmp_path, PLAN, on_pass=on_pass)
    assert passes >= 3
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() == before


@contextmanager
def _raises(kind: type[BaseException] | None) -> Iterator[None]:
    if kind is None:
        yield
        return
    with pytest.raises(kind):
        yield


# ---- places ----


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpillError, match=r"ENOENT.*create the directory"):
        measure_directory(tmp_path / "none", PLAN)


def test_a_directory_that_may_not_be_written_is_told() -> None:
    with public_folder() as place:
        place.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:  # who knows no forbidden directories
                os.seteuid(NOBODY)
            with pytest.raises(SpillError, match=r"EACCES.*writable for this user"):
                measure_directory(place, PLAN)
        finally:
            os.seteuid(user)
            place.chmod(0o755)


def test_more_than_is_free_is_told_and_not_even_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, start: int, size_bytes: int) -> None:
        pytest.fail("it took what others need")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    free_bytes = shutil.disk_usage(tmp_path).free
    plan = BenchPlan(size_bytes=free_bytes + (1 << 30), block_bytes=(MIB,), depths=(2,))
    with pytest.raises(SpillError, match=r"are free: .*ENOSPC.*free space there"):
        measure_directory(tmp_path, plan)


def test_a_full_disk_is_told_and_works_again(tmp_path: Path) -> None:
    with small_disk(tmp_path) as place:
        filler = place / "filler"
        free_bytes = shutil.disk_usage(place).free
        run_or_skip("fallocate", "--length", str(free_bytes - 2 * MIB), filler)
        with pytest.raises(SpillError, match=r"could not reserve .*ENOSPC"):
            measure_directory(place, PLAN)
        filler.unlink()
        assert measure_directory(place, PLAN)


def test_memory_is_warned_of() -> None:
    place = Path("/dev/shm")
    kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True)
    if kind.stdout.strip() != "tmpfs":
        pytest.skip("no tmpfs here")
    before = set(place.iterdir())
    with pytest.warns(SpillWarning, match="/dev/shm is memory"):
        assert measure_directory(place, PLAN)
    assert set(place.iterdir()) <= before


def test_blocks_that_are_not_aligned_are_refused(tmp_path: Path) -> None:
    plan = BenchPlan(size_bytes=MIB, block_bytes=(1000,), depths=(2,), fio=False)
    with rounds.rig_of(tmp_path, plan) as rig:
        if not rig.file.is_direct:
            pytest.skip("no direct I/O here")
    with pytest.raises(ValueError, match="block_bytes is 1000: it takes a multiple of"):
        measure_directory(tmp_path, plan)


# ---- engines ----


@pytest.fixture
def no_uring(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that refuses io_uring."""

    def refuse(files: Sequence[SpoolFile], *, depth: int | None = None) -> Engine:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(choice, "proved_uring", refuse)


@pytest.mark.usefixtures("no_uring")
def test_an_engine_that_is_refused_is_left_out_and_said(tmp_path: Path) -> None:
    with pytest.warns(SpillWarning, match=r"left out: io_uring is refused here .*not permitted"):
        results = measure_directory(tmp_path, PLAN)
    assert {result.engine for result in results} == {"threads"}


@pytest.mark.usefixtures("no_uring")
def test_an_engine_that_was_asked_for_has_to_work(tmp_path: Path) -> None:
    plan = replace(PLAN, engines=(EngineKind.URING,))
    with pytest.raises(SpillError, match="io_uring is refused here"):
        measure_directory(tmp_path, plan)
