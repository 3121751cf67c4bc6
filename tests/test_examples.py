"""The examples run as they stand, and the loss that they print falls."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_learns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path))
    shown = capsys.readouterr().out
    losses = [float(number) for number in re.findall(r"\bloss\W+([0-9.]+)", shown)]
    assert len(losses) >= 3
    assert losses[2] < losses[0]
    assert "LlamaDecoderLayer" in shown  # the report
