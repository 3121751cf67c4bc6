"""Raw devices: taken when asked for, and only when nothing on them can be lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssd import SpillError, aligned_buffer, open_spool
from tests.ssd.disk import MIB, loop_device, open_descriptors, random_buffer, run_or_skip


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path) as device:
        yield device


def _refused(device: Path, match: str, size_bytes: int = 8 * MIB) -> None:
    before = open_descriptors()
    with pytest.raises(SpillError, match=match):
        open_spool([device], size_bytes, raw=True, engine="threads")
    assert open_descriptors() == before


@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_an_empty_device_is_a_spool(device: Path, engine: str) -> None:
    source, back = random_buffer(6 * MIB, 1), aligned_buffer(6 * MIB)
    with open_spool([device], 16 * MIB, raw=True, engine=engine, block_bytes=MIB) as spool:
        assert spool.files[0].is_direct
        extent = spool.allocate(6 * MIB)
        spool.write(extent, source).wait()
        spool.read(extent, back).wait()
        assert back == source
    with device.open("rb") as file:
        assert file.read(MIB) == source[:MIB], "it went to the device itself"


def test_a_device_with_a_file_system_is_left_alone(device: Path) -> None:
    run_or_skip("mkfs.ext4", "-q", device)
    before = subprocess.run(["sha256sum", device], capture_output=True, check=True).stdout
    _refused(device, "blkid found .*TYPE=ext4")
    after = subprocess.run(["sha256sum", device], capture_output=True, check=True).stdout
    assert before == after


def test_a_device_with_partitions_is_left_alone(device: Path) -> None:
    table = bytearray(512)
    table[446:462] = bytes.fromhex("00202100830a28000008000000100000")
    table[510:] = b"\x55\xaa"
    with device.open("r+b") as file:
        file.write(table)
        os.fsync(file.fileno())
    _refused(device, "blkid found .*PTTYPE=dos")


def test_a_mounted_device_is_left_alone(device: Path, tmp_path: Path) -> None:
    run_or_skip("mkfs.ext4", "-q", device)
    place = tmp_path / "place"
    place.mkdir()
    run_or_skip("mount", device, place)
    try:
        _refused(device, "EBUSY.*unmount the device")
    finally:
        run_or_skip("umount", place)


def test_a_device_that_is_a_spool_already_is_left_alone(device: Path) -> None:
    with open_spool([device], 8 * MIB, raw=True, engine="threads"):
        _refused(device, "EBUSY")


def test_nothing_can_be_mounted_while_the_spool_is_open(device: Path, tmp_path: Path) -> None:
    with open_spool([device], 8 * MIB, raw=True, engine="threads"):
        run = subprocess.run(["mkfs.ext4", "-q", device], capture_output=True, check=False)
        assert run.returncode != 0, "a spool's device was formatted"


def test_a_device_that_is_too_small_is_told(device: Path) -> None:
    _refused(device, "ENOSPC", 17 * MIB)


def test_without_blkid_nothing_is_proved(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    _refused(device, "not proved to be empty: blkid could not be run")


def test_a_device_is_taken_only_as_one_and_a_directory_too(device: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="raw=True"):
        open_spool([device], 8 * MIB)
    with pytest.raises(ValueError, match="no block device"):
        open_spool([tmp_path], 8 * MIB, raw=True)
    with pytest.raises(SpillError, match="ENOENT"):
        open_spool([tmp_path / "none"], 8 * MIB, raw=True)
