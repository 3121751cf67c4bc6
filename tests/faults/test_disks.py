"""A small disk of its own: really full, really silent, really read-only."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from io import FileIO
from pathlib import Path

import pytest

from ssd import EngineKind, SpillError, SpillWarning, aligned_buffer, open_spool
from ssd.contracts import Alignment, Operation, Piece, SpoolFile
from ssd.direct import go_direct
from ssd.request_queue import RequestQueue
from tests.ssd.disk import (
    KINDS,
    MIB,
    engine_of,
    open_descriptors,
    random_buffer,
    run_or_skip,
    skip_where_refused,
    small_disk,
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path) as place:
        yield place


def _free_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def test_a_disk_without_room_is_told_before_the_first_byte(disk: Path) -> None:
    before, descriptors = _free_bytes(disk), open_descriptors()
    with pytest.raises(SpillError) as caught:
        open_spool([disk], 64 * MIB)
    assert caught.value.errno == errno.ENOSPC
    for part in ("reserve 67,108,864 bytes", str(disk), "ENOSPC", "smaller spool"):
        assert part in str(caught.value)
    assert (_free_bytes(disk), open_descriptors()) == (before, descriptors)
    open_spool([disk], 8 * MIB, engine="threads").close()


def test_one_full_disk_of_two_is_named_and_the_other_is_let_go(disk: Path, tmp_path: Path) -> None:
    descriptors = open_descriptors()
    with pytest.raises(SpillError, match=f"reserve 67,108,864 bytes in {disk}"):
        open_spool([tmp_path, disk], 128 * MIB)
    assert open_descriptors() == descriptors


def test_what_is_reserved_stays_ours_on_a_full_disk(disk: Path) -> None:
    with open_spool([disk], 8 * MIB, engine="threads") as spool:
        filler = disk / "filler"
        _fill(filler)
        extent, buffer = spool.allocate(8 * MIB), random_buffer(8 * MIB, 1)
        spool.write(extent, buffer).wait()
        back = aligned_buffer(8 * MIB)
        spool.read(extent, back).wait()
        assert back == buffer
        filler.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_in_the_middle_of_it_is_told_and_works_again(
    disk: Path, kind: EngineKind
) -> None:
    """Where nothing can be reserved (Btrfs, ZFS), a file grows as it is written."""
    fd = os.open(disk / "file", os.O_RDWR | os.O_CREAT, 0o600)
    alignment = go_direct(fd)
    file = SpoolFile(fd, disk, 8 * MIB, alignment is not None, alignment or Alignment())
    buffer = random_buffer(4 * MIB, 2)
    with closing(RequestQueue(engine_of(kind, [file]))) as queue:
        _fill(disk / "filler")
        with pytest.raises(SpillError, match=r"ENOSPC.*free space there") as caught:
            queue.submit(Operation.WRITE, [Piece(file, 0, buffer)]).wait()
        assert caught.value.directory == disk
        (disk / "filler").unlink()
        queue.submit(Operation.WRITE, [Piece(file, 0, buffer)]).wait()
        back = aligned_buffer(4 * MIB)
        queue.submit(Operation.READ, [Piece(file, 0, back)]).wait()
        assert back == buffer
    os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_does_not_answer_for_seconds_is_waited_for(
    disk: Path, kind: EngineKind
) -> None:
    """A frozen file system answers no write until it thaws."""
    skip_where_refused(kind)
    with open_spool([disk], 8 * MIB, engine=kind, stall_s=0.5) as spool:
        extent, buffer = spool.allocate(4 * MIB), random_buffer(4 * MIB, 3)
        thaw = threading.Timer(2.0, subprocess.run, [["fsfreeze", "--unfreeze", disk]])
        run_or_skip("fsfreeze", "--freeze", disk)
        thaw.start()
        request = spool.write(extent, buffer)
        with pytest.warns(SpillWarning, match=f"no answer from {disk}"):
            request.wait()
        assert request.finished_s is not None
        assert request.finished_s - request.submitted_s > 1.5
        thaw.join()
        back = aligned_buffer(4 * MIB)
        spool.read(extent, back).wait()
        assert back == buffer


def test_a_read_only_disk_is_told(disk: Path) -> None:
    run_or_skip("mount", "-o", "remount,ro", disk)
    with pytest.raises(SpillError, match=r"EROFS.*name another directory"):
        open_spool([disk], MIB)


def _fill(path: Path) -> None:
    """Until no byte is left."""
    with path.open("wb", buffering=0) as file:
        for size_bytes in (MIB, 4096, 1024):
            while _has_room(file, size_bytes):
                pass
        os.fsync(file.fileno())


def _has_room(file: FileIO, size_bytes: int) -> bool:
    try:
        file.write(bytes(size_bytes))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def test_a_file_system_without_fallocate_serves(tmp_path: Path) -> None:
    with small_disk(tmp_path, kind="ext2") as place, open_spool([place], 8 * MIB) as spool:
        assert os.fstat(spool.files[0].fd).st_blocks * 512 >= 8 * MIB
        source, back = random_buffer(MIB, 1), aligned_buffer(MIB)
        extent = spool.allocate(MIB)
        spool.write(extent, source).wait()
        spool.reserve(12 * MIB)
        spool.read(extent, back).wait()
        assert back == source
