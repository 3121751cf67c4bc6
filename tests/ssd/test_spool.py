"""The spool: every byte comes back, from one disk or several, and nobody gets another's."""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from ssd import EngineKind, Extent, SpillError, SpillWarning, Spool, aligned_buffer, open_spool
from ssd.contracts import SpoolFile
from ssd.faults import spill_error
from ssd.files import open_file
from ssd.request_queue import RequestQueue
from ssd.threads import ThreadEngine
from tests.ssd.disk import (
    KINDS,
    MIB,
    open_descriptors,
    random_buffer,
    skip_where_little_is_locked,
    skip_where_refused,
)
from tests.ssd.faulty import Fail, Fault, FaultyEngine, Stall

LASTING = Fail(28)  # ENOSPC: never tried again


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> EngineKind:
    kind: EngineKind = request.param
    skip_where_refused(kind)
    return kind


def _folders(folder: Path, count: int) -> list[Path]:
    folders = [folder / f"disk{index}" for index in range(count)]
    for each in folders:
        each.mkdir()
    return folders


def _faulty(folder: Path, script: Sequence[Fault], size_bytes: int = 4 * MIB) -> Spool:
    files: list[SpoolFile] = [open_file(folder, size_bytes)]
    return Spool(files, RequestQueue(FaultyEngine(ThreadEngine(), script)), block_bytes=MIB)


def _put(spool: Spool, seed: int, size_bytes: int = MIB) -> tuple[Extent, memoryview]:
    extent = spool.allocate(size_bytes)
    buffer = random_buffer(extent.size_bytes, seed)
    spool.write(extent, buffer)
    return extent, buffer


def _get(spool: Spool, extent: Extent) -> memoryview:
    buffer = aligned_buffer(extent.size_bytes)
    spool.read(extent, buffer).wait()
    return buffer


@pytest.mark.parametrize("disks", [1, 3])
def test_extents_of_odd_sizes_come_back(tmp_path: Path, kind: EngineKind, disks: int) -> None:
    rng = random.Random(disks)
    folders = _folders(tmp_path, disks)
    with open_spool(folders, 24 * MIB, engine=kind, block_bytes=MIB // 2) as spool:
        lent: dict[Extent, memoryview] = {}
        for seed in range(40):
            extent, buffer = _put(spool, seed, rng.randint(1, 2 * MIB))
            lent[extent] = buffer
            while len(lent) > 6:
                old = rng.choice(list(lent))
                assert _get(spool, old) == lent.pop(old)
                spool.free(old)
        for extent, buffer in lent.items():
            assert _get(spool, extent) == buffer
            spool.free(extent)
        assert spool.free_bytes == spool.size_bytes == 24 * MIB


def test_all_disks_have_their_share(tmp_path: Path) -> None:
    folders = _folders(tmp_path, 3)
    with open_spool(folders, 12 * MIB, engine="threads", block_bytes=MIB) as spool:
        extent, buffer = _put(spool, 1, 12 * MIB)
        spool.read(extent, aligned_buffer(12 * MIB)).wait()
        for index, file in enumerate(spool.files):
            assert (file.directory, file.size_bytes) == (folders[index], 4 * MIB)
            part = aligned_buffer(MIB)
            os.preadv(file.fd, [part], 0)
            assert part == buffer[index * MIB : (index + 1) * MIB]


def test_sizes_are_rounded_to_the_alignment_only(tmp_path: Path) -> None:
    with open_spool([tmp_path], 4 * MIB, engine="threads") as spool:
        unit = spool.alignment_bytes
        assert spool.allocate(1).size_bytes == unit
        assert spool.allocate(5 * unit).size_bytes == 5 * unit
        assert spool.allocate(5 * unit + 1).size_bytes == 6 * unit


def test_the_file_has_no_name_and_is_for_nobody_else(tmp_path: Path) -> None:
    with open_spool([tmp_path], 4 * MIB, engine="threads") as spool:
        status = os.fstat(spool.files[0].fd)
        assert list(tmp_path.iterdir()) == []
        assert status.st_nlink == 0
        assert stat.S_IMODE(status.st_mode) == 0o600


def test_the_space_is_reserved_before_the_first_byte(tmp_path: Path) -> None:
    with open_spool([tmp_path], 8 * MIB + 4096, engine="threads") as spool:
        status = os.fstat(spool.files[0].fd)
        assert status.st_size == 8 * MIB + 4096
        assert status.st_blocks * 512 >= 8 * MIB + 4096


def test_closing_lets_descriptors_go(tmp_path: Path, kind: EngineKind) -> None:
    before = open_descriptors()
    for _ in range(3):
        with open_spool([tmp_path], 4 * MIB, engine=kind) as spool:
            _put(spool, 1)
        spool.close()
    assert open_descriptors() == before


def test_a_read_waits_for_the_write_of_its_extent(tmp_path: Path) -> None:
    with _faulty(tmp_path, [Stall(0.4)]) as spool:
        extent, buffer = _put(spool, 1)
        assert _get(spool, extent) == buffer


def test_a_read_after_a_write_that_failed_fails(tmp_path: Path) -> None:
    with _faulty(tmp_path, [LASTING]) as spool:
        extent, _ = _put(spool, 1)
        with pytest.raises(SpillError, match="No space left"):
            spool.read(extent, aligned_buffer(MIB))


def test_an_extent_given_back_is_not_lent_while_it_is_written(tmp_path: Path) -> None:
    with _faulty(tmp_path, [None, Stall(0.5)], 2 * MIB) as spool:
        kept, buffer = _put(spool, 1)
        late, _ = _put(spool, 2)
        spool.free(late)
        assert spool.free_bytes == 0
        again, other = _put(spool, 3)  # waits for the write that stalls
        assert again.start == late.start
        assert _get(spool, again) == other
        assert _get(spool, kept) == buffer


def test_a_failed_write_that_nobody_waited_for_is_told(tmp_path: Path) -> None:
    with _faulty(tmp_path, [LASTING]) as spool:
        extent = spool.allocate(MIB)
        spool.write(extent, random_buffer(MIB, 1)).settle()
        spool.free(extent)
        with pytest.warns(SpillWarning, match="No space left"):
            spool.allocate(MIB)
        assert spool.free_bytes == 3 * MIB


def test_one_that_is_never_given_back_is_told_at_the_end(tmp_path: Path) -> None:
    spool = _faulty(tmp_path, [LASTING, LASTING])
    _put(spool, 1)
    told, buffer = _put(spool, 2)
    with pytest.raises(SpillError, match="No space left"):
        spool.read(told, buffer)
    with pytest.warns(SpillWarning, match="No space left") as warned:
        spool.close()
    assert len(warned) == 1


def test_threads_that_share_a_spool_get_their_own_bytes(tmp_path: Path, kind: EngineKind) -> None:
    shared = open_spool([tmp_path], 8 * MIB, engine=kind, block_bytes=MIB // 4)
    failures: list[object] = []
    stop_s = time.monotonic() + 1.0

    def use(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < stop_s and not failures:
            extent, buffer = _put(shared, rng.randrange(1 << 30), rng.randint(1, MIB))
            if _get(shared, extent) != buffer:
                failures.append((seed, extent))
            shared.free(extent)

    with shared:
        threads = [threading.Thread(target=use, args=[seed]) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert not failures
        assert shared.free_bytes == 8 * MIB


def test_a_full_spool_says_what_there_is(tmp_path: Path) -> None:
    with open_spool([tmp_path], 4 * MIB, engine="threads") as spool:
        parts = [spool.allocate(MIB) for _ in range(4)]
        spool.free(parts[0])
        spool.free(parts[2])
        with pytest.raises(SpillError, match=r"2,097,152 of 4,194,304 are free, 1,048,576 in one"):
            spool.allocate(MIB + 1)
        spool.free(parts[1])
        assert spool.allocate(3 * MIB).start == 0


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with open_spool([tmp_path], 4 * MIB, engine="threads") as spool:
        yield spool


def test_what_was_never_written_is_not_read(spool: Spool) -> None:
    extent = spool.allocate(MIB)
    with pytest.raises(ValueError, match="never written"):
        spool.read(extent, aligned_buffer(MIB))


def test_wrong_buffers_are_refused(spool: Spool) -> None:
    extent, buffer = _put(spool, 1)
    with pytest.raises(ValueError, match="it takes 1048576"):
        spool.write(extent, aligned_buffer(MIB // 2))
    with pytest.raises(ValueError, match="read-only"):
        spool.read(extent, buffer.toreadonly())
    if spool.files[0].is_direct:
        with pytest.raises(ValueError, match="not aligned"):
            spool.write(extent, aligned_buffer(2 * MIB)[1 : MIB + 1])


def test_an_extent_given_back_is_nobodys(spool: Spool) -> None:
    extent, buffer = _put(spool, 1)
    spool.free(extent)
    with pytest.raises(ValueError, match="not lent"):
        spool.write(extent, buffer)
    with pytest.raises(ValueError, match="not lent"):
        spool.read(extent, buffer)
    with pytest.raises(ValueError, match="not lent"):
        spool.free(extent)


def test_wrong_arguments_are_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(ValueError, match="directories is empty"):
        open_spool([], MIB)
    with pytest.raises(ValueError, match="size_bytes is 0"):
        open_spool([tmp_path], 0)
    with pytest.raises(ValueError, match="for 2 directories"):
        open_spool([tmp_path, tmp_path], MIB)
    with pytest.raises(ValueError, match="block_bytes is 1000"):
        open_spool([tmp_path], MIB, block_bytes=1000, engine="threads")
    with pytest.raises(ValueError, match="aio"):
        open_spool([tmp_path], MIB, engine="aio")
    assert open_descriptors() == before


def test_the_engine_can_be_told_its_buffers(tmp_path: Path, kind: EngineKind) -> None:
    memory = aligned_buffer(4 * MIB)
    with closing(open_spool([tmp_path], 4 * MIB, engine=kind)) as spool:
        try:
            assert spool.fix([memory]) == (kind is EngineKind.URING)
        except SpillWarning as refused:
            skip_where_little_is_locked(refused)
        extent, buffer = _put(spool, 1)
        memory[2 * MIB : 3 * MIB] = bytes(MIB)
        spool.read(extent, memory[2 * MIB : 3 * MIB]).wait()
        assert memory[2 * MIB : 3 * MIB] == buffer


@pytest.mark.parametrize("disks", [1, 3])
def test_a_spool_grows_and_keeps_what_is_in_it(tmp_path: Path, disks: int) -> None:
    with open_spool(_folders(tmp_path, disks), disks * 4 * MIB) as spool:
        first = [_put(spool, seed, 2 * MIB) for seed in range(2 * disks)]
        with pytest.raises(SpillError):
            spool.allocate(MIB)
        spool.reserve(disks * 4 * MIB + 5 * MIB)
        assert spool.free_bytes == 5 * MIB
        assert sum(os.fstat(file.fd).st_size for file in spool.files) >= spool.size_bytes
        more = _put(spool, 99, 4 * MIB)
        for extent, source in [*first, more]:
            assert _get(spool, extent) == source
        spool.reserve(MIB)
        assert spool.size_bytes == disks * 4 * MIB + 5 * MIB


def test_a_spool_that_cannot_grow_is_as_it_was(tmp_path: Path) -> None:
    with open_spool([tmp_path], 4 * MIB) as spool:
        extent, source = _put(spool, 1)
        with pytest.raises(SpillError, match="could not reserve"):
            spool.reserve(1 << 60)
        assert spool.size_bytes == 4 * MIB
        assert os.fstat(spool.files[0].fd).st_size == 4 * MIB
        assert _get(spool, extent) == source


def test_growth_that_one_disk_refuses_is_taken_back_on_the_others(tmp_path: Path) -> None:
    with open_spool(_folders(tmp_path, 2), 8 * MIB) as spool:
        grow, taken = spool._grow_file, [os.fstat(file.fd).st_blocks for file in spool.files]

        def refuse(file: SpoolFile, size_bytes: int) -> SpoolFile:
            if file is spool.files[1]:
                raise spill_error("reserve", file.directory, errno.ENOSPC)
            return grow(file, size_bytes)

        spool._grow_file = refuse
        with pytest.raises(SpillError, match="could not reserve"):
            spool.reserve(64 * MIB)
        assert [os.fstat(file.fd).st_blocks for file in spool.files] == taken
        assert spool.size_bytes == 8 * MIB
