"""Processes of their own for faults that would harm the test's: forbidden system calls, small
limits, sudden death.

Scope: helpers. `python -m tests.faults.children NAME FOLDER` runs one of the scripts below.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import subprocess
import sys
import warnings
from pathlib import Path

from ssd import (
    EngineKind,
    SpillError,
    SpillWarning,
    Spool,
    Verify,
    aligned_buffer,
    open_spool,
)

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
NOBODY = 65534

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_LOAD, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x35, 0x06  # of the classic packet filter
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_EPERM = 1
_IO_URING_SETUP, _IO_URING_REGISTER = 425, 427  # the same on all architectures


def run_child(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, and return what it printed."""
    command = [sys.executable, "-m", "tests.faults.children", name, str(folder)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def start_child(name: str, folder: Path) -> subprocess.Popen[str]:
    """Start a script, and return when it has printed a line."""
    command = [sys.executable, "-m", "tests.faults.children", name, str(folder)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    return child


def _forbid_io_uring() -> None:
    """As containers do, by default."""
    steps = [
        (_LOAD, 0, 0, 0),
        (_JUMP_IF_AT_LEAST, 0, 2, _IO_URING_SETUP),
        (_JUMP_IF_AT_LEAST, 1, 0, _IO_URING_REGISTER + 1),
        (_RETURN, 0, 0, _REFUSE | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _round_trip(spool: Spool, buffer: memoryview) -> bool:
    extent = spool.allocate(len(buffer))
    buffer[:] = os.urandom(len(buffer))
    before = bytes(buffer)
    spool.write(extent, buffer).wait()
    buffer[:] = bytes(len(buffer))
    spool.read(extent, buffer).wait()
    return buffer == before


def forbidden(folder: Path) -> None:
    """io_uring is refused by the kernel: what opens, what works, what is said."""
    _forbid_io_uring()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        spool = open_spool([folder], 4 * MIB, verify=Verify.CHECKSUM)
    with spool:
        works = _round_trip(spool, aligned_buffer(MIB))
        say(spool.queue.engine.name, works, *(warning.message for warning in told))


def forbidden_by_name(folder: Path) -> None:
    """io_uring is refused, and was asked for by name."""
    _forbid_io_uring()
    open_spool([folder], 4 * MIB, engine=EngineKind.URING)


def little_memlock(folder: Path) -> None:
    """Less memory may be locked than the buffers have: what is fixed, what works, what is said."""
    import ssd.uring  # noqa: F401 - while all files may be read

    if os.geteuid() == 0:
        folder.chmod(0o777)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (256 << 10, 256 << 10))
    memory = aligned_buffer(16 * MIB)
    with (
        warnings.catch_warnings(record=True) as told,
        open_spool([folder], 4 * MIB, engine=EngineKind.URING) as spool,
    ):
        warnings.simplefilter("always")
        is_fixed = spool.fix([memory])
        works = _round_trip(spool, memory[:MIB])
        say(is_fixed, works, *(warning.message for warning in told))


def busy(folder: Path) -> None:
    """Write and read for ever."""
    with open_spool([folder], 16 * MIB) as spool:
        buffer = aligned_buffer(4 * MIB)
        extents = [spool.allocate(4 * MIB) for _ in range(4)]
        for extent in extents:
            spool.write(extent, buffer)
        say("ready")
        while True:
            for extent in extents:
                spool.write(extent, buffer)
                spool.read(extent, aligned_buffer(4 * MIB))


def training(folder: Path) -> None:
    """Train a wrapped model for ever, with everything on the disk."""
    import memo
    from tests.families.catalogue import family_named
    from tests.families.harness import build, random_batch, train_step

    model = memo.wrap(
        build(family_named("llama")),
        tile_tokens=5,
        placement="ssd",
        skeletal="ssd",
        in_flight_bytes=0,
        spill_dir=folder,
        spill_bytes=16 * MIB,
    )
    train_step(model, random_batch(2, 23))
    say("ready")
    while True:
        train_step(model, random_batch(2, 23))


def forked(folder: Path) -> None:
    """Store, and let forks of this process end and write: what they say, and the parent has."""
    from functools import partial

    import torch

    from offload import MemoError, TensorStore, Tier, open_disk

    store = TensorStore(in_flight_bytes=0, open_disk=partial(open_disk, [folder]))
    spool = open_spool([folder], 4 * MIB)

    def step() -> bool:
        tickets = [store.put([torch.full((4096,), float(n))], Tier.SSD) for n in range(6)]
        return all(bool((store.get(tickets[n])[0] == n).all()) for n in reversed(range(6)))

    before = step()
    ended = os.fork()
    if ended == 0:
        sys.exit(0)
    os.waitpid(ended, 0)
    writer = os.fork()
    if writer == 0:
        try:
            step()
        except MemoError as error:
            say(error)
        try:
            spool.allocate(4096)
        except SpillError as error:
            say(error)
        os._exit(0)
    os.waitpid(writer, 0)
    say(before, step())


def unfinished(folder: Path) -> None:
    """End with checked writes under way."""
    import torch

    from offload import TensorStore, Tier
    from offload.spool_disk import SpoolDisk
    from tests.ssd.faulty import FaultyEngine, Stall

    def slow_disk() -> SpoolDisk:
        spool = open_spool([folder], 256 * MIB, verify=Verify.CHECKSUM)
        spool.queue.engine = FaultyEngine(spool.queue.engine, [Stall(0.3)] * 500)
        return SpoolDisk(spool, can_grow=False)

    store = TensorStore(in_flight_bytes=1 << 30, open_disk=slow_disk)
    tickets = [store.put([torch.zeros(1 << 20)], Tier.SSD) for _ in range(40)]
    sys.unfinished = store, tickets  # type: ignore[attr-defined]  # held until Python is gone
    say("the last line", len(tickets))


def say(*words: object) -> None:
    """A word a line."""
    sys.stdout.write("".join(f"{word}\n" for word in words))
    sys.stdout.flush()


if __name__ == "__main__":
    warnings.simplefilter("default", SpillWarning)
    globals()[sys.argv[1]](Path(sys.argv[2]))
