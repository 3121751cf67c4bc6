"""What happens to a process of its own: io_uring forbidden, little memory to lock, sudden death."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ssd.contracts import EngineKind
from tests.faults.children import run_child, start_child
from tests.ssd.disk import MIB, public_folder, skip_where_refused, small_disk


def test_where_io_uring_is_forbidden_threads_do_the_work(tmp_path: Path) -> None:
    child = run_child("forbidden", tmp_path)
    assert child.returncode == 0, child.stderr
    engine, works, *told = child.stdout.splitlines()
    assert (engine, works) == ("threads", "True")
    assert len(told) == 1
    assert "io_uring is refused here" in told[0]
    assert "not permitted" in told[0]


def test_where_io_uring_is_forbidden_asking_for_it_by_name_fails(tmp_path: Path) -> None:
    child = run_child("forbidden_by_name", tmp_path)
    assert child.returncode == 1
    last = child.stderr.strip().splitlines()[-1]
    assert last.startswith("ssd.contracts.SpillError: io_uring is refused here")
    assert "seccomp" in last


def test_where_little_memory_may_be_locked_nothing_is_fixed_and_all_works() -> None:
    skip_where_refused(EngineKind.URING)
    with public_folder() as folder:
        child = run_child("little_memlock", folder)
    assert child.returncode == 0, child.stderr
    is_fixed, works, *told = child.stdout.splitlines()
    assert (is_fixed, works) == ("False", "True")
    assert len(told) == 1
    assert "could not be fixed" in told[0]
    assert "ulimit -l" in told[0]


@pytest.mark.parametrize("script", ["busy", "training"])
def test_a_killed_process_leaves_no_file_and_gives_its_space_back(
    tmp_path: Path, script: str
) -> None:
    with small_disk(tmp_path) as disk:
        before = _free_bytes(disk)
        child = start_child(script, disk)
        assert _free_bytes(disk) <= before - 16 * MIB
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=20) == -signal.SIGKILL
        assert [path.name for path in disk.iterdir()] == ["lost+found"]
        _wait_until_free(disk, before)


def test_a_killed_process_leaves_no_file_in_a_plain_directory(tmp_path: Path) -> None:
    child = start_child("busy", tmp_path)
    child.kill()
    child.wait(timeout=20)
    assert list(tmp_path.iterdir()) == []


def test_a_fork_may_not_write_and_its_end_harms_nobody(tmp_path: Path) -> None:
    child = run_child("forked", tmp_path)
    assert child.returncode == 0, child.stderr
    store_refused, spool_refused, before, after = child.stdout.splitlines()
    for refused in (store_refused, spool_refused):
        assert "of which this one is a fork" in refused
    assert (before, after) == ("True", "True")


def test_a_process_ends_with_writes_under_way(tmp_path: Path) -> None:
    child = run_child("unfinished", tmp_path)
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout.splitlines() == ["the last line", "40"]
    assert list(tmp_path.iterdir()) == []


def _free_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def _wait_until_free(place: Path, expected_bytes: int) -> None:
    # The kernel ends what a dead process had in flight in its own time.
    deadline_s = time.monotonic() + 10
    while _free_bytes(place) < expected_bytes:
        if time.monotonic() > deadline_s:
            pytest.fail(f"{expected_bytes - _free_bytes(place):,} bytes are still taken")
        time.sleep(0.05)
