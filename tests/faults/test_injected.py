"""Faults that a test can't cause on a real disk: errors once and for good, transfers that stop
short, silence, and bytes that rot. The engine behind the faults is the real one.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from ssd import EngineKind, Extent, SpillError, Spool, aligned_buffer, open_spool
from ssd.checksums import Checksums
from ssd.files import open_file
from ssd.request_queue import RequestQueue
from tests.ssd.disk import KINDS, MIB, engine_of, random_buffer, skip_where_refused
from tests.ssd.faulty import Claim, Fail, Fault, FaultyEngine, Short, Stall

FOR_GOOD = 5
"""Tries until a fault that lasts is believed: the first and four more."""

Open = Callable[[Sequence[Fault]], Spool]


@pytest.fixture(params=KINDS)
def open_faulty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Open spools whose engine follows a script; blocks of 1 MiB."""
    kind: EngineKind = request.param
    with ExitStack() as stack:

        def open_one(script: Sequence[Fault]) -> Spool:
            file = open_file(tmp_path, 8 * MIB)
            engine = FaultyEngine(engine_of(kind, [file]), script)
            queue = RequestQueue(engine, retry_pause_s=0.0005)
            return stack.enter_context(Spool([file], queue, block_bytes=MIB))

        yield open_one


def _write(spool: Spool, size_bytes: int = MIB) -> tuple[Extent, memoryview]:
    extent = spool.allocate(size_bytes)
    buffer = random_buffer(extent.size_bytes, 1)
    spool.write(extent, buffer).wait()
    return extent, buffer


def _read(spool: Spool, extent: Extent) -> memoryview:
    buffer = aligned_buffer(extent.size_bytes)
    spool.read(extent, buffer).wait()
    return buffer


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN, errno.EIO])
def test_an_error_that_passes_is_tried_again(open_faulty: Open, number: int) -> None:
    spool = open_faulty([Fail(number), None, Fail(number), Fail(number)])
    extent, buffer = _write(spool)
    assert _read(spool, extent) == buffer
    assert spool.queue.retried == 3


def test_an_error_on_write_that_lasts_is_told_in_full(open_faulty: Open, tmp_path: Path) -> None:
    spool = open_faulty([Fail(errno.EIO)] * FOR_GOOD)
    with pytest.raises(SpillError) as caught:
        _write(spool)
    error = caught.value
    assert (error.errno, error.directory) == (errno.EIO, tmp_path)
    for part in ("write 1,048,576 bytes", str(tmp_path), "after 4 retries", "EIO", "dmesg"):
        assert part in str(error)
    extent, buffer = _write(spool)  # the cause is gone
    assert _read(spool, extent) == buffer


def test_an_error_on_read_that_lasts_is_told_and_the_bytes_are_there_still(
    open_faulty: Open, tmp_path: Path
) -> None:
    spool = open_faulty([None, *[Fail(errno.EIO)] * FOR_GOOD])
    extent, buffer = _write(spool)
    with pytest.raises(SpillError, match=f"could not read 1,048,576 bytes.*{tmp_path}.*EIO"):
        _read(spool, extent)
    assert _read(spool, extent) == buffer


def test_an_error_that_never_passes_by_itself_is_told_at_once(open_faulty: Open) -> None:
    spool = open_faulty([Fail(errno.ENOSPC)])
    with pytest.raises(SpillError, match=r"ENOSPC.*free space there"):
        _write(spool)
    assert spool.queue.retried == 0


def test_one_piece_that_fails_fails_the_request_and_no_other(open_faulty: Open) -> None:
    spool = open_faulty([None, None, Fail(errno.ENOSPC)])
    small = spool.allocate(2 * MIB)
    buffer = random_buffer(2 * MIB, 2)
    good = spool.write(small, buffer)
    bad = spool.write(spool.allocate(4 * MIB), random_buffer(4 * MIB))
    with pytest.raises(SpillError, match="ENOSPC"):
        bad.wait()
    good.wait()
    assert _read(spool, small) == buffer


@pytest.mark.parametrize("moved_bytes", [4096, 68 << 10, MIB - 4096])
def test_a_short_write_goes_on_where_it_ended(open_faulty: Open, moved_bytes: int) -> None:
    spool = open_faulty([Short(moved_bytes), Short(4096)])
    extent, buffer = _write(spool)
    assert _read(spool, extent) == buffer
    assert spool.queue.retried == 0


def test_a_short_read_goes_on_where_it_ended(open_faulty: Open) -> None:
    spool = open_faulty([None, Short(4096), Short(512 << 10)])
    extent, buffer = _write(spool)
    assert _read(spool, extent) == buffer


def test_a_transfer_that_ends_between_aligned_offsets_goes_on_at_one(open_faulty: Open) -> None:
    spool = open_faulty([Claim(5001), None, Claim(MIB - 1)])
    extent, buffer = _write(spool)
    assert _read(spool, extent) == buffer


def test_a_transfer_that_moves_nothing_is_tried_again_and_then_told(open_faulty: Open) -> None:
    spool = open_faulty([Short(0), None, *[Short(0)] * FOR_GOOD])
    extent, buffer = _write(spool)
    with pytest.raises(SpillError, match="ended after 0 bytes"):
        _read(spool, extent)
    assert _read(spool, extent) == buffer


def test_a_file_that_has_lost_its_end_is_an_error_not_zeros(open_faulty: Open) -> None:
    spool = open_faulty([])
    extent, _ = _write(spool, 2 * MIB)
    os.ftruncate(spool.files[0].fd, MIB + 4096)
    with pytest.raises(SpillError, match="ended after 4,096 bytes"):
        _read(spool, extent)


def test_a_disk_that_is_silent_for_seconds_is_waited_for(open_faulty: Open) -> None:
    spool = open_faulty([Stall(2.0)])
    extent, buffer = spool.allocate(MIB), random_buffer(MIB, 3)
    start_s = time.perf_counter()
    request = spool.write(extent, buffer)
    other, _ = _write(spool)  # goes by
    assert not request.is_done()
    assert time.perf_counter() - start_s < 1.5
    request.wait()
    assert time.perf_counter() - start_s >= 1.9
    assert _read(spool, extent) == buffer
    spool.free(other)


# ---- bytes that rot ----


def _flip(spool: Spool, offset_bytes: int) -> None:
    """Change one byte of the first file, behind the spool's back."""
    fd, start = spool.files[0].fd, offset_bytes // 4096 * 4096
    block = aligned_buffer(4096)
    os.preadv(fd, [block], start)
    block[offset_bytes - start] ^= 1
    os.pwritev(fd, [block], start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, MIB + 77, 3 * MIB - 1])
def test_a_flipped_bit_is_caught(tmp_path: Path, kind: EngineKind, at: int) -> None:
    skip_where_refused(kind)
    with open_spool([tmp_path], 8 * MIB, engine=kind, verify="checksum", block_bytes=MIB) as spool:
        extent, buffer = _write(spool, 3 * MIB)
        assert _read(spool, extent) == buffer
        _flip(spool, at)
        with pytest.raises(SpillError, match="not those that were written"):
            _read(spool, extent)
        _flip(spool, at)
        assert _read(spool, extent) == buffer


def test_bytes_that_an_engine_never_brought_are_caught(tmp_path: Path) -> None:
    file = open_file(tmp_path, 4 * MIB)
    engine, checksums = engine_of(EngineKind.THREADS, [file]), Checksums()
    queue = RequestQueue(engine, check=checksums.check)
    with Spool([file], queue, checksums=checksums) as spool:
        extent, _ = _write(spool)
        os.pwritev(file.fd, [aligned_buffer(MIB)], 0)  # zeros in their place
        with pytest.raises(SpillError, match="not those that were written"):
            _read(spool, extent)


def test_sums_of_what_was_given_back_are_forgotten(tmp_path: Path) -> None:
    file = open_file(tmp_path, 4 * MIB)
    checksums = Checksums()
    queue = RequestQueue(engine_of(EngineKind.THREADS, [file]), check=checksums.check)
    with Spool([file], queue, checksums=checksums, block_bytes=MIB) as spool:
        extent, _ = _write(spool, 3 * MIB)
        assert len(checksums) == 3
        spool.free(extent)
        assert spool.free_bytes == 4 * MIB
        assert len(checksums) == 0
