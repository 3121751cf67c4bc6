"""Running `tests/gpu` with the Python that is there, whatever of pytest's plugins it lacks.

Scope: one call of pytest in a process of its own. The project's settings of pytest are left out:
they name plugins, and make an unknown one an error.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from benchmarks.runner import ROOT

_ARGUMENTS = (
    "-c",
    os.devnull,
    "--rootdir=.",
    "--import-mode=importlib",
    "-p",
    "no:cacheprovider",
    "-v",
    "-ra",
)

_MOST_WORKERS = 12
"""At once on the device, where pytest-xdist is installed: most of their time is the host's."""

_LAST_WORDS_S = 20.0
"""For pytest to tell what failed once it is told that the time is up."""

_PASSED, _NONE_COLLECTED = 0, 5
"""pytest's exit statuses."""

_DULL = re.compile(r"::.*\b(PASSED|SKIPPED)\b|\b(PASSED|SKIPPED)\b.*::")
"""A line for a test that is nothing to look at, with workers and without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestsEnded:
    """`summary` is one line; `output` is what pytest printed, but for what passed."""

    hold: bool
    summary: str
    output: str = ""


def run(timeout_s: float, folder: str | Path = "tests/gpu") -> TestsEnded:
    """Run the tests; without pytest there is nothing to run, which is said and is no failure."""
    if find_spec("pytest") is None:
        return TestsEnded(hold=True, summary="not run: pytest is not installed")
    command = [sys.executable, "-m", "pytest", str(folder), *_ARGUMENTS, *_workers()]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            printed = _interrupted(process)
            late = f"not done after {timeout_s:.0f} s: {_last_line(printed)}"
            return TestsEnded(hold=False, summary=late, output=_told(printed))
    return TestsEnded(
        hold=process.returncode in (_PASSED, _NONE_COLLECTED),
        summary=_last_line(printed),
        output=_told(printed),
    )


def _workers() -> list[str]:
    if find_spec("xdist") is None:
        return []
    count = max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) - 2))
    return ["-n", str(count), "--dist", "worksteal"]


def _interrupted(process: subprocess.Popen[str]) -> str:
    """All that it printed, with the failures so far, which pytest tells when it is interrupted."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=_LAST_WORDS_S)[0]
    except subprocess.TimeoutExpired:
        # Its workers would hold the pipe open.
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        return process.communicate()[0]


def _last_line(printed: str) -> str:
    """How many passed and failed, mostly."""
    lines = printed.strip().splitlines()
    return lines[-1].strip("= ") if lines else "pytest printed nothing"


def _told(printed: str) -> str:
    return "\n".join(line for line in printed.splitlines() if not _DULL.search(line))
