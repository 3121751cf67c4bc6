"""The disk probe: it measures, leaves nothing behind, and says what is in its way."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from memo.doctor import disk
from memo.doctor.disk import ask_disk, probe_disk

SMALL_BYTES = 1 << 20


def test_it_measures_and_leaves_nothing(tmp_path: Path) -> None:
    found = probe_disk(tmp_path, SMALL_BYTES)
    assert found.problem is None
    assert found.write_bytes_per_s is not None
    assert found.read_bytes_per_s is not None
    # Slower than 1 MB/s or faster than 1 TB/s would be a mistake in units.
    assert 1e6 < found.write_bytes_per_s < 1e12
    assert 1e6 < found.read_bytes_per_s < 1e12
    assert found.engine in ("io_uring", "threads")
    assert found.size_bytes == shutil.disk_usage(tmp_path).total
    assert found.device == tmp_path.stat().st_dev
    assert list(tmp_path.iterdir()) == []


def test_rates_are_bytes_over_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians of 3 rounds over 2 extents of 32 MiB; the first writing of them does not count."""
    seconds = iter([100.0, 1.0, 4.0, 2.0, 0.5, 8.0, 0.25])
    original = disk._run

    def run(*arguments: object) -> float:
        original(*arguments)  # type: ignore[arg-type]
        return next(seconds)

    monkeypatch.setattr(disk, "_run", run)
    found = probe_disk(tmp_path, 33 << 20)
    assert found.write_bytes_per_s == (64 << 20) / 2.0
    assert found.read_bytes_per_s == (64 << 20) / 0.5


def test_a_directory_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    found = probe_disk(tmp_path / "no", SMALL_BYTES)
    assert found.problem is not None
    assert "No such file" in found.problem
    assert found.write_bytes_per_s is None


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("", encoding="utf-8")
    found = probe_disk(path, SMALL_BYTES)
    assert found.problem is not None
    assert "no directory" in found.problem


def test_what_keeps_no_files_is_no_disk() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    for found in (ask_disk(Path("/proc")), probe_disk(Path("/proc"), SMALL_BYTES)):
        assert found.problem == "it keeps no files: name a directory on a disk"


def test_asking_tells_space_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "open_file", None)
    monkeypatch.setattr(disk, "open_spool", None)
    found = ask_disk(tmp_path)
    assert (found.problem, found.write_bytes_per_s) == (None, None)
    assert found.size_bytes == shutil.disk_usage(tmp_path).total
    assert ask_disk(tmp_path / "no").problem == probe_disk(tmp_path / "no", 1).problem is not None


def test_a_disk_is_not_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total, used, _ = shutil.disk_usage(tmp_path)
    usage = shutil._ntuple_diskusage(total, used, 90 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = probe_disk(tmp_path, SMALL_BYTES)
    assert found.problem is not None
    assert "too little is free" in found.problem
    assert found.free_bytes == 90 << 20


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("liburing"), "the package liburing is not installed"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "Operation not permitted"),
    ],
)
def test_threads_serve_where_io_uring_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def refuse(files: object, **_: object) -> None:
        raise error

    monkeypatch.setattr(disk, "proved_uring", refuse)
    monkeypatch.setattr("ssd.choice.proved_uring", refuse)
    found = probe_disk(tmp_path, SMALL_BYTES)
    assert found.io_uring == said
    assert found.is_fixed is None
    assert found.engine == "threads"
    assert any("threads read and write instead" in note for note in found.notes)
    assert found.write_bytes_per_s is not None


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_a_size_is_above_zero(tmp_path: Path, size_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"size_bytes is {size_bytes}"):
        probe_disk(tmp_path, size_bytes)
