"""Directories that are missing, forbidden, none, or gone; and descriptors that run out."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ssd import EngineKind, SpillError, SpillWarning, aligned_buffer, open_spool
from tests.ssd.disk import (
    KINDS,
    MIB,
    open_descriptors,
    public_folder,
    random_buffer,
    skip_where_refused,
)

NOBODY = 65534


def _told(caught: SpillError, directory: Path, number: int, todo: str) -> None:
    assert (caught.errno, caught.directory) == (number, directory)
    for part in (str(directory), errno.errorcode[number], todo):
        assert part in str(caught)


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    place = tmp_path / "none"
    with pytest.raises(SpillError) as caught:
        open_spool([place], MIB)
    _told(caught.value, place, errno.ENOENT, "create the directory")
    place.mkdir()
    open_spool([place], MIB, engine="threads").close()


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(SpillError) as caught:
        open_spool([place], MIB)
    _told(caught.value, place, errno.ENOTDIR, "name a directory")


def test_a_directory_that_may_not_be_written_is_told() -> None:
    with public_folder() as place:
        place.chmod(0o555)
        with _as_nobody(), pytest.raises(SpillError) as caught:
            open_spool([place], MIB)
        place.chmod(0o755)
    _told(caught.value, place, errno.EACCES, "writable for this user")


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_removed_under_an_open_spool_changes_nothing(
    tmp_path: Path, kind: EngineKind
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    skip_where_refused(kind)
    with open_spool([place], 4 * MIB, engine=kind) as spool:
        extent, buffer, back = spool.allocate(MIB), random_buffer(MIB, 1), aligned_buffer(MIB)
        spool.write(extent, buffer).wait()
        shutil.rmtree(place)
        spool.read(extent, back).wait()
        assert back == buffer
        other = spool.allocate(MIB)
        spool.write(other, buffer).wait()
    with pytest.raises(SpillError, match="ENOENT"):
        open_spool([place], MIB)


def test_no_descriptor_left_is_told_and_it_works_when_there_are_some(tmp_path: Path) -> None:
    before = open_descriptors()
    with _descriptors_left(0), pytest.raises(SpillError) as caught:
        open_spool([tmp_path], MIB)
    _told(caught.value, tmp_path, errno.EMFILE, "ulimit -n")
    assert open_descriptors() == before
    open_spool([tmp_path], MIB, engine="threads").close()


def test_no_descriptor_left_for_a_ring_means_threads(tmp_path: Path) -> None:
    before = open_descriptors()
    with _descriptors_left(2), pytest.warns(SpillWarning, match="Too many open files.*threads"):
        spool = open_spool([tmp_path], MIB)
    with spool:
        extent, buffer = spool.allocate(MIB), random_buffer(MIB, 2)
        spool.write(extent, buffer).wait()
        assert spool.queue.engine.name == "threads"
    assert open_descriptors() == before


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Without root's rights, which know no forbidden directories."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def _descriptors_left(count: int) -> Iterator[None]:
    """So many, and no more, may be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 32, hard))
    taken: list[int] = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    try:
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
