"""What tests of the disk share: random bytes, engines by kind, and small disks of their own.

Scope: helpers. What a machine forbids (io_uring, loop devices) is skipped, and said.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest

from ssd.buffers import aligned_buffer
from ssd.choice import choose_engine
from ssd.contracts import Engine, EngineKind, SpillWarning, SpoolFile

KINDS = (EngineKind.URING, EngineKind.THREADS)
MIB = 1 << 20


def random_buffer(size_bytes: int, seed: int = 0) -> memoryview:
    """An aligned buffer of random bytes."""
    buffer = aligned_buffer(size_bytes)
    rng = numpy.random.default_rng(seed)
    numpy.frombuffer(buffer, numpy.uint8)[:] = rng.integers(0, 256, size_bytes, numpy.uint8)
    return buffer


def open_descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="memo-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def engine_of(kind: EngineKind, files: Sequence[SpoolFile]) -> Engine:
    """Return an engine of the kind; skip where io_uring is refused."""
    skip_where_refused(kind)
    return choose_engine(files, kind)


def skip_where_refused(kind: EngineKind) -> None:
    """Where the kernel gives no ring; an engine of ours that does not work is no reason."""
    if kind is EngineKind.URING:
        liburing = pytest.importorskip("liburing", reason="no liburing for this machine")
        ring = liburing.Ring()
        try:
            liburing.io_uring_queue_init(1, ring)
        except OSError as error:
            pytest.skip(f"io_uring is refused here: {error}")
        liburing.io_uring_queue_exit(ring)


def skip_where_little_is_locked(refused: SpillWarning) -> None:
    """Where the limit of locked memory is why buffers are not fixed; else it is a fault."""
    if "limit of locked memory" in str(refused):
        pytest.skip(str(refused))
    raise refused


@contextmanager
def small_disk(folder: Path, size_bytes: int = 32 * MIB, *, kind: str = "ext4") -> Iterator[Path]:
    """A file system of its own on a loop device, mounted; skip where that is not allowed."""
    image, place = folder / "disk.img", folder / "disk"
    image.touch()
    os.truncate(image, size_bytes)
    place.mkdir()
    run_or_skip(f"mkfs.{kind}", "-q", "-m", "0", image)
    run_or_skip("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        _unmount(place)


@contextmanager
def loop_device(folder: Path, size_bytes: int = 16 * MIB) -> Iterator[Path]:
    """A block device that holds zeros; skip where that is not allowed."""
    image = folder / "device.img"
    image.touch()
    os.truncate(image, size_bytes)
    device = run_or_skip("losetup", "--find", "--show", image).strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def run_or_skip(*command: str | Path) -> str:
    """Run, and return what it printed; skip where the command is missing or refused."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"{command[0]} is not here: {error}")
    if done.returncode:
        pytest.skip(f"{command[0]} is refused here: {done.stderr.strip()}")
    return done.stdout


def _unmount(place: Path) -> None:
    # The kernel lets a ring's files go in its own time.
    for _ in range(50):
        if subprocess.run(["umount", place], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", place], check=True)
    pytest.fail(f"something is still open on {place}")
