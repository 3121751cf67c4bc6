"""The examples run as they stand, in one process and over several, and the loss that they print
falls, the same whoever shares the work."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.long if path.stem == "trainer" else ())
    for path in sorted((ROOT / "examples").glob("*.py"))
]
OVER_RANKS = ["finetune", "trainer"]


def _losses(shown: str) -> list[float]:
    assert "LlamaDecoderLayer" in shown  # the report
    losses = [float(number) for number in re.findall(r"\bloss\W+([0-9.]+)", shown)]
    assert len(losses) >= 3
    assert losses[2] < losses[0]
    return losses[:3]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_runs_and_learns(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path))
    alone = _losses(capsys.readouterr().out)
    if path.stem in OVER_RANKS:
        assert _losses(_over_ranks(path)) == pytest.approx(alone, rel=1e-3)  # as it is printed


def _over_ranks(path: Path) -> str:
    """What two processes under torchrun print."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
