"""fio as the reference: the real one where it is installed, and programs that answer badly."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssd.bench import BenchPlan, Case, Op, measure_directory, subjects
from ssd.bench.contracts import Rig
from ssd.bench.fio import FioSubject, find_fio
from ssd.bench.rounds import rig_of
from ssd.contracts import EngineKind, SpillError, SpillWarning
from tests.ssd.disk import MIB

PLAN = BenchPlan(
    size_bytes=13 * MIB + 4096,
    block_bytes=(MIB,),
    depths=(3,),
    rounds=1,
    engines=(EngineKind.THREADS,),
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_of(tmp_path, PLAN) as rig:
        yield rig


def _case(op: Op) -> Case:
    return Case(op=op, block_bytes=MIB, depth=3)


def _content(rig: Rig) -> bytes:
    fd = os.open(f"/proc/self/fd/{rig.file.fd}", os.O_RDONLY)
    found = os.pread(fd, rig.file.size_bytes, 0)
    os.close(fd)
    return found


def _fio() -> str:
    program = find_fio()
    if program is None:
        pytest.skip("fio is not installed")
    return program


def _program(folder: Path, body: str) -> str:
    """A fio that does what `body` says."""
    path = folder / "fio"
    path.write_text("#!/bin/sh\n" + textwrap.dedent(body), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


# ---- the real one ----


@pytest.mark.parametrize("large_pages", [False, True])
def test_it_writes_all_whole_blocks_of_our_file_and_reading_changes_none(
    rig: Rig, large_pages: bool
) -> None:
    fio = FioSubject(_fio(), large_pages=large_pages)
    assert not any(_content(rig))
    fio.measure(rig, _case(Op.READ))
    assert not any(_content(rig))
    sample = fio.measure(rig, _case(Op.WRITE))
    written = _content(rig)
    assert all(any(written[start : start + 4096]) for start in range(0, 13 * MIB, 4096))
    assert not any(written[13 * MIB :])
    assert sample.bytes_per_s > 0
    assert sample.cpu_s_per_gb >= 0


def test_it_runs_in_the_same_comparison(tmp_path: Path) -> None:
    _fio()
    results = measure_directory(tmp_path, PLAN)
    found = {(result.engine, result.op) for result in results}
    assert found == {(engine, op) for engine in ("threads", "fio", "fio-thp") for op in Op}
    assert list(tmp_path.iterdir()) == []


# ---- others ----


def test_figures_are_those_of_its_answer(rig: Rig, tmp_path: Path) -> None:
    job = {
        "read": {"io_bytes": 1_000_000_000, "runtime": 400},
        "write": {"io_bytes": 3_000_000_000, "runtime": 500},
        "job_runtime": 500,
        "usr_cpu": 12.0,
        "sys_cpu": 8.0,
    }
    answer = tmp_path / "answer"
    answer.write_text("fio: a note\n" + json.dumps({"jobs": [job]}), encoding="utf-8")
    program = _program(tmp_path, f"cat {answer}")
    sample = FioSubject(program, large_pages=False).measure(rig, _case(Op.MIXED))
    assert sample.bytes_per_s == pytest.approx(8e9)
    assert sample.cpu_s_per_gb == pytest.approx(0.2 * 0.5 / 4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo engine io_uring not loadable >&2; exit 1", "engine io_uring not loadable"),
        ("exit 7", "fio in .*: 7;"),
        ("echo no JSON at all", "its answer can't be read"),
        ("echo '{\"jobs\": []}'", "its answer can't be read"),
    ],
)
def test_a_failure_is_told_in_one_line(rig: Rig, tmp_path: Path, body: str, message: str) -> None:
    program = _program(tmp_path, body)
    with pytest.raises(SpillError, match=message) as caught:
        FioSubject(program, large_pages=False).measure(rig, _case(Op.WRITE))
    assert "\n" not in str(caught.value)
    assert "--no-fio" in str(caught.value)


def test_a_program_that_is_none_is_told(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(SpillError, match="No such file"):
        FioSubject(str(tmp_path / "none"), large_pages=False).measure(rig, _case(Op.WRITE))


def test_it_is_left_out_where_it_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _program(tmp_path, "echo Operation not permitted >&2; exit 1")
    monkeypatch.setattr(subjects, "find_fio", lambda: program)
    with pytest.warns(SpillWarning, match=r"left out: could not run fio.*not permitted"):
        results = measure_directory(tmp_path, PLAN)
    assert {result.engine for result in results} == {"threads"}


def test_it_is_left_out_when_it_is_missing_or_unwanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "find_fio", lambda: None)
    assert {r.engine for r in measure_directory(tmp_path, PLAN)} == {"threads"}


@pytest.mark.parametrize("large_pages", [False, True])
def test_large_pages_are_asked_of_the_c_library(
    rig: Rig, tmp_path: Path, large_pages: bool
) -> None:
    program = _program(tmp_path, 'echo "tunables:$GLIBC_TUNABLES" >&2; exit 1')
    with pytest.raises(SpillError) as caught:
        FioSubject(program, large_pages=large_pages).measure(rig, _case(Op.WRITE))
    assert ("glibc.malloc.hugetlb=1" in str(caught.value)) == large_pages
