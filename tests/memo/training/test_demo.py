"""`memo demo` from end to end on a tiny model: cases, table, picture, file."""

from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from memo.cli import app
from memo.training.contracts import CaseResult, RefusedInputError, StepRecord
from memo.training.demo import Comparison, DemoSettings, run_demo
from memo.training.plot import draw_memory
from memo.training.show import comparison_table, explanation

STEPS = 4
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Demo:
    folder: Path
    shown: str
    cases: Mapping[str, dict[str, Any]]

    def losses(self, mode: str) -> list[float]:
        return [step["loss"] for step in self.cases[mode]["steps"]]


@pytest.fixture(scope="module")
def demo(tiny_model: Path, long_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    options = ["demo", "--model", tiny_model, "--data", long_text, "--output", folder]
    options += ["--tokens", 400, "--steps", STEPS, "--lr", 0.01, "--tile-tokens", 128]
    options += ["--dtype", "float32", "--threads", 1]
    result = CliRunner().invoke(app, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    cases = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["cases"]
    return Demo(folder, result.stdout, {case["mode"]: case for case in cases})


def test_every_case_finishes_all_steps_with_figures(demo: Demo) -> None:
    assert list(demo.cases) == ["plain", "checkpointing", "wrapped"]
    for case in demo.cases.values():
        assert (case["fit"], case["reason"]) == ("done", "")
        assert [step["step"] for step in case["steps"]] == list(range(STEPS))
        assert case["step_s"] > 0
        assert 0 < case["base_bytes"] <= case["peak_bytes"]
        seconds = [second for second, _ in case["timeline"]]
        assert seconds == sorted(seconds)
        # The kernel sums up pages lazily: the sampled peak may differ by a little.
        assert max(size for _, size in case["timeline"]) <= case["peak_bytes"] + 2**20


def test_losses_agree_step_by_step_and_fall(demo: Demo) -> None:
    plain = demo.losses("plain")
    assert plain[2] < plain[0]  # the second pass over the same two windows
    assert plain[3] < plain[1]
    for mode in demo.cases:
        for ours, theirs in zip(demo.losses(mode), plain, strict=True):
            assert math.isclose(ours, theirs, rel_tol=1e-5)


def test_only_the_wrapped_case_has_a_report(demo: Demo) -> None:
    assert "LlamaDecoderLayer" in demo.cases["wrapped"]["report"]
    assert demo.cases["plain"]["report"] == demo.cases["checkpointing"]["report"] == ""


def test_the_table_shows_what_the_file_holds(demo: Demo) -> None:
    for words in ("peak memory", "seconds a step", "tokens a second", "LlamaDecoderLayer"):
        assert words in demo.shown
    for mode in demo.cases:
        assert f"{demo.losses(mode)[STEPS - 1]:.4f}" in demo.shown


def test_nothing_but_picture_and_figures_is_left(demo: Demo) -> None:
    assert (demo.folder / "memory.png").read_bytes().startswith(PNG_SIGNATURE)
    names = sorted(path.name for path in demo.folder.iterdir())
    assert names == ["comparison.json", "memory.png"]


def test_what_does_not_fit_is_said_in_the_table(
    tiny_model: Path, long_text: Path, tmp_path: Path
) -> None:
    settings = DemoSettings(
        model=str(tiny_model),
        data=long_text,
        tokens=400,
        steps=2,
        memory_limit_bytes=2**20,
        modes=("plain",),
        output=tmp_path,
    )
    comparison = run_demo(settings, on_note=lambda _: None, on_case=lambda _: lambda _: None)
    result = comparison.results[0]
    assert (result.fit, result.step_s) == ("out of memory", None), result.reason
    screen = io.StringIO()
    Console(width=120, file=screen).print(comparison_table(comparison))
    assert "OUT OF MEMORY" in screen.getvalue()
    assert any("within 1.0 MiB" in line for line in explanation(comparison))
    assert not draw_memory(comparison.results, tmp_path / "none.png", title="nothing")
    assert not (tmp_path / "none.png").exists()


def test_too_little_text_is_refused_and_leaves_nothing(
    tiny_model: Path, long_text: Path, tmp_path: Path
) -> None:
    settings = DemoSettings(model=str(tiny_model), data=long_text, tokens=100_000, output=tmp_path)
    with pytest.raises(RefusedInputError, match="one sequence takes 100,000"):
        run_demo(settings, on_note=lambda _: None, on_case=lambda _: lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_ended_leaves_no_worker_and_no_file(
    tiny_model: Path, long_text: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "memo.cli", "demo", "--tokens", "400", "--steps", "500"]
    command += ["--model", str(tiny_model), "--data", str(long_text), "--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
        parent = psutil.Process(demo.pid)
        workers: list[psutil.Process] = []
        while not workers and demo.poll() is None:
            time.sleep(0.05)
            workers = parent.children()
        assert any(tmp_path.iterdir())
        demo.terminate()
        assert demo.wait(timeout=30) == 128 + signal.SIGTERM
    assert workers
    _, left = psutil.wait_procs(workers, timeout=30)
    assert left == []
    assert list(tmp_path.iterdir()) == []


def test_a_busy_machine_is_told() -> None:
    def told(cpu_s: float) -> bool:
        step = StepRecord(step=0, loss=1.0, grad_norm=1.0, seconds=1.0, cpu_s=cpu_s)
        comparison = Comparison(
            settings=DemoSettings(steps=2),
            dtype="float32",
            threads=2,
            memory_limit_bytes=None,
            results=(CaseResult(mode="plain", steps=(step,) * 4),),
        )
        return any("other work ran beside" in line for line in explanation(comparison))

    assert told(1.2)
    assert not told(1.9)


@pytest.mark.parametrize(("count", "median_s"), [(0, None), (3, None), (4, 4.0), (6, 5.0)])
def test_warm_up_and_memory_steps_are_not_timed(count: int, median_s: float | None) -> None:
    steps = tuple(
        StepRecord(step=n, loss=1.0, grad_norm=1.0, seconds=n + 1.0, cpu_s=1.0)
        for n in range(count)
    )
    assert CaseResult(mode="plain", steps=steps).step_s == median_s
