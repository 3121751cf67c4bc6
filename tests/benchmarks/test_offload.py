"""The disk's benchmark: how it ends when something failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import offload, runner
from benchmarks.contracts import Job, Outcome, Phase, Sample

FAILING = "memo:ssd/ssd"
TRACEBACK = "Traceback (most recent call last):\n  ...\nssd.SpillError: could not write: EIO"


def quick(job: Job, timeout_s: float) -> Sample:
    sample = Sample(case=job.case, tokens=job.tokens, phase=job.phase, outcome=Outcome.OK)
    if job.phase is Phase.TIME:
        return replace(sample, step_s=[1.0], cores_used=1.0)
    return replace(sample, growth_bytes=1 << 20, layers=job.shape.layers)


def failing(job: Job, timeout_s: float) -> Sample:
    if job.case == FAILING:
        return runner.ended_as(job, Outcome.FAILED, TRACEBACK)
    if job.phase is Phase.PEAK:
        return runner.ended_as(job, Outcome.DOES_NOT_FIT, "no memory")
    return quick(job, timeout_s)


CASES = ("--cases", "plain", "memo:recompute", FAILING, "--tokens", "512", "1024")


@pytest.mark.parametrize("mode", [("--repeats", "2"), ("--grow-layers", "2", "4")])
def test_it_ends_well_when_all_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    monkeypatch.setattr(runner, "run", quick)
    offload.main([*CASES, "--spill-dir", str(tmp_path), *mode])


def test_what_failed_is_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run", failing)
    with pytest.raises(SystemExit) as ended:
        offload.main([*CASES, "--repeats", "2"])
    # 2 lengths, 2 repeats and a peak of one case; of 3 cases in all
    assert ended.value.code == (
        f"error: 6 of 18 measurements failed; the first, {FAILING}, 512 tokens, time: "
        "ssd.SpillError: could not write: EIO"
    )
    assert "Lanes." in capsys.readouterr().out  # what there is, is shown


def test_a_lack_of_memory_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run", failing)
    offload.main(["--cases", "plain", "--tokens", "512", "--repeats", "1"])


def test_a_directory_that_is_missing_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run", None)
    with pytest.raises(SystemExit) as ended:
        offload.main(["--spill-dir", "/absent/disk"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.endswith("--spill-dir: /absent/disk: there is no such directory")
