"""Running `tests/gpu` with the Python that is there, whatever of pytest's plugins it lacks.

Scope: one call of pytest in a process of its own. The project's settings of pytest are left out:
they name plugins, and make an unknown one an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.runner import ROOT

_ARGUMENTS = (
    "tests/gpu",
    "-c",
    os.devnull,
    "--rootdir=.",
    "--import-mode=importlib",
    "-p",
    "no:cacheprovider",
    "-q",
    "-ra",
)

_WORKERS = 4
"""At once on the device, where pytest-xdist is installed: most of their time is the host's."""

_PASSED, _NONE_COLLECTED = 0, 5
"""pytest's exit statuses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestsEnded:
    """`summary` is one line; `output` is all that pytest printed."""

    hold: bool
    summary: str
    output: str = ""


def run(timeout_s: float) -> TestsEnded:
    """Run the tests; without pytest there is nothing to run, which is said and is no failure."""
    if find_spec("pytest") is None:
        return TestsEnded(hold=True, summary="not run: pytest is not installed")
    workers = ["-n", str(_WORKERS)] if find_spec("xdist") is not None else []
    command = [sys.executable, "-m", "pytest", *_ARGUMENTS, *workers]
    try:
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        shown = (error.stdout or b"").decode(errors="replace")  # bytes, whatever `text` says
        return TestsEnded(hold=False, summary=f"not done after {timeout_s:.0f} s", output=shown)
    lines = ended.stdout.strip().splitlines()
    return TestsEnded(
        hold=ended.returncode in (_PASSED, _NONE_COLLECTED),
        summary=lines[-1] if lines else ended.stderr.strip(),
        output=ended.stdout + ended.stderr,
    )
