"""Direct I/O: taken where there is one, with the alignment that the kernel tells or a trial
shows.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssd import SpillWarning, open_spool
from ssd.buffers import aligned_buffer
from ssd.contracts import Alignment
from ssd.direct import file_system_of, go_direct, told_alignment, tried_alignment
from ssd.files import close_file, open_file
from tests.ssd.disk import MIB, run_or_skip, small_disk

SHARED_MEMORY = Path("/dev/shm")


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path) as place:
        yield place


@pytest.fixture
def memory() -> Iterator[Path]:
    if not SHARED_MEMORY.is_dir():
        pytest.skip("no file system in memory here")
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        yield Path(folder)


def test_a_file_on_ext4_goes_direct_as_aligned_as_it_must_be(disk: Path) -> None:
    file = open_file(disk, MIB)
    assert file_system_of(file.fd) == "ext4"
    assert file.is_direct
    assert _is_direct(file.fd)
    unit = file.alignment.offset_bytes
    buffer = aligned_buffer(2 * unit)
    assert os.pwritev(file.fd, [buffer[:unit]], unit) == unit
    with pytest.raises(OSError, match="Invalid argument"):
        os.pwritev(file.fd, [buffer[: unit // 2]], unit)
    close_file(file)


def test_what_the_kernel_tells_is_what_a_trial_shows(disk: Path) -> None:
    file = open_file(disk, MIB)
    known, told = told_alignment(file.fd)
    if not known:
        pytest.skip("this kernel does not tell")
    assert told is not None
    tried = tried_alignment(file.fd)
    assert tried is not None
    assert tried.offset_bytes == told.offset_bytes
    assert 1 <= told.memory_bytes <= tried.memory_bytes
    close_file(file)


def test_where_the_kernel_does_not_tell_a_trial_does(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssd.direct.told_alignment", lambda fd: (False, None))
    file = open_file(disk, MIB)
    assert file.is_direct
    assert file.alignment == tried_alignment(file.fd)
    close_file(file)


def test_a_file_system_that_says_no_is_left_as_it_was(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssd.direct.told_alignment", lambda fd: (True, None))
    with tempfile.TemporaryFile(dir=disk) as file:
        assert go_direct(file.fileno()) is None
        assert not _is_direct(file.fileno())
    with pytest.warns(SpillWarning, match=r"\(ext4\) takes no direct I/O"):
        close_file(open_file(disk, MIB))


def test_memory_is_no_disk_and_that_is_told(memory: Path) -> None:
    with pytest.warns(SpillWarning, match=r"is memory \(tmpfs\), not a disk") as told:
        spool = open_spool([memory], 4 * MIB, engine="threads")
    assert len(told) == 1
    with spool:
        assert not spool.files[0].is_direct
        assert spool.files[0].alignment == Alignment(1, 1)
        assert not _is_direct(spool.files[0].fd)
        extent = spool.allocate(1001)
        assert extent.size_bytes == 1001
        source, back = memoryview(os.urandom(1001)), memoryview(bytearray(1001))
        spool.write(extent, source)
        spool.read(extent, back).wait()
        assert back == source


def test_an_overlay_works_either_way(tmp_path: Path) -> None:
    lower, upper, work, place = (tmp_path / name for name in ("lower", "upper", "work", "place"))
    for folder in (lower, upper, work, place):
        folder.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    run_or_skip("mount", "-t", "overlay", "overlay", "-o", options, place)
    try:
        file = open_file(place, MIB)
        assert file_system_of(file.fd) == "overlay"
        assert file.is_direct == _is_direct(file.fd)
        unit = file.alignment.offset_bytes
        assert os.pwritev(file.fd, [aligned_buffer(unit)], unit) == unit
        close_file(file)
    finally:
        run_or_skip("umount", place)
