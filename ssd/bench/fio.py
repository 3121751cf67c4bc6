"""fio as the reference: its io_uring engine on the same file, block size and depth.

Scope: one pass of fio, made as good as it can be. Its buffers are filled before the time is taken
(`rw=rw` with a share of reads of 0 or 100: plain `rw=read` takes its first page faults in the
measurement) and not scrambled between writes. CPU seconds are what fio says of its job: its
processes' total, with their start, is about ten times that for 2 GiB, and would flatter us.
`fio-thp` is the same with its memory on 2 MiB pages, by a setting of the C library
(`glibc.malloc.hugetlb`, glibc 2.35 and later; ignored elsewhere).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

from ssd.bench.contracts import FIO, FIO_LARGE_PAGES, Case, Op, Rig, Sample
from ssd.contracts import SpillError

_READ_PERCENT = {Op.WRITE: 0, Op.READ: 100, Op.MIXED: 50}
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class FioSubject:
    """See `ssd.bench.contracts.Subject`."""

    def __init__(self, program: str, *, large_pages: bool) -> None:
        self.name = FIO_LARGE_PAGES if large_pages else FIO
        self._program = program
        self._large_pages = large_pages

    def measure(self, rig: Rig, case: Case) -> Sample:
        environment = os.environ | (_LARGE_PAGES if self._large_pages else {})
        command = [self._program, *_options(rig, case)]
        try:
            done = subprocess.run(
                command,
                pass_fds=[rig.file.fd],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise _failed(rig, str(error)) from error
        if done.returncode:
            raise _failed(rig, (done.stderr or done.stdout).strip() or f"{done.returncode}")
        return _sample(rig, done.stdout)


def find_fio() -> str | None:
    """The program, when it is installed."""
    return shutil.which("fio")


def _options(rig: Rig, case: Case) -> list[str]:
    # The file has no name; fio opens it anew through our descriptor, with flags of its own.
    return [
        "--name=memo",
        f"--filename=/proc/self/fd/{rig.file.fd}",
        "--allow_file_create=0",
        f"--size={rig.blocks(case) * case.block_bytes}",
        "--ioengine=io_uring",
        f"--direct={int(rig.file.is_direct)}",
        "--rw=rw",
        f"--rwmixread={_READ_PERCENT[case.op]}",
        f"--bs={case.block_bytes}",
        f"--iodepth={case.depth}",
        "--thread",
        "--scramble_buffers=0",
        "--output-format=json",
    ]


def _sample(rig: Rig, output: str) -> Sample:
    try:
        # Notes may stand before it.
        job: dict[str, Any] = json.loads(output[output.index("{") :])["jobs"][0]
        moved_bytes = job["read"]["io_bytes"] + job["write"]["io_bytes"]
        taken_s = max(job["read"]["runtime"], job["write"]["runtime"], 1) / 1e3
        busy_share = (job["usr_cpu"] + job["sys_cpu"]) / 100
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _failed(rig, f"its answer can't be read ({error!r})") from error
    if not moved_bytes:
        raise _failed(rig, "it moved nothing")
    cpu_s = busy_share * job["job_runtime"] / 1e3
    return Sample(bytes_per_s=moved_bytes / taken_s, cpu_s_per_gb=cpu_s / (moved_bytes / 1e9))


def _failed(rig: Rig, reason: str) -> SpillError:
    directory = rig.file.directory
    return SpillError(
        f"could not run fio in {directory}: {' '.join(reason.split())}; leave it out (--no-fio)",
        directory=directory,
        operation="run fio",
    )
