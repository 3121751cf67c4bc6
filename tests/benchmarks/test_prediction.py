"""Predictions beside measurements: errors worked out by hand, and a child that fails."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import prediction
from benchmarks.prediction_contracts import Case, Job, Measured, Predicted, Result, Work
from benchmarks.prediction_tables import errors_of, line, results, summary_of

PREDICTED = Predicted(step_s=1.2, exposed_s=0.0, optimizer_s=0.1, peak_bytes=1020, base_bytes=600)
MEASURED = Measured(
    step_s=[1.0, 9.0, 0.5],
    cores_used=1.9,
    exposed_s=0.0,
    peak_bytes=1000,
    base_bytes=600,
    loss=1.0,
)
CASE = Case(model="llama", tokens=10, placement="keep", predicted=PREDICTED, measured=MEASURED)


def test_errors_are_of_the_prediction_to_the_measurement() -> None:
    errors = errors_of(CASE)
    assert errors is not None
    assert errors.peak == pytest.approx(0.02)
    assert errors.growth == pytest.approx(20 / 400)
    assert errors.time == pytest.approx(0.2)  # to the median of three
    assert errors_of(replace(CASE, measured=None)) is None


def test_the_summary_takes_the_worst_peak_and_the_median_time() -> None:
    low = replace(CASE, predicted=replace(PREDICTED, peak_bytes=960, step_s=0.9))
    exact = replace(CASE, predicted=replace(PREDICTED, peak_bytes=1000, step_s=1.0))
    broken = Case(model="llama", tokens=10, placement="host", problem="measure: it died")
    found = summary_of([CASE, low, exact, broken])
    assert found is not None
    assert (found.cases, found.failed) == (3, 1)
    assert found.worst_peak == pytest.approx(0.04)
    assert found.median_time == pytest.approx(0.1)
    assert found.p90_time == pytest.approx(0.18)
    assert found.worst_time == pytest.approx(0.2)
    assert not found.is_met
    assert line(found).endswith("no.")
    assert replace(found, worst_peak=0.03, median_time=0.15).is_met
    assert summary_of([broken]) is None
    assert results([CASE, broken]).row_count == 2


def test_jobs_and_results_go_through_json() -> None:
    job = Job(work=Work.MEASURE, model="llama", tokens=7, placements=("ssd",), hardware={"a": 1})
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    result = Result(predicted={"keep": PREDICTED}, measured=MEASURED, calibration_s=2.0)
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert Case.from_json(json.loads(json.dumps(asdict(CASE)))) == CASE


def test_a_child_that_fails_is_a_problem_of_its_cases(tmp_path: Path) -> None:
    pattern = Job(work=Work.PREDICT, spill_dir=str(tmp_path))  # without hardware
    run = prediction.Run(pattern, 100.0, tmp_path / "out.json")
    cases = list(run.turn("llama", 16, ["keep", "ssd"]))
    assert [case.placement for case in cases] == ["keep", "ssd"]
    assert all("PlanError: hardware" in case.problem for case in cases)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["summary"] is None
    assert [case["errors"] for case in written["cases"]] == [None, None]


@pytest.mark.long
def test_a_small_run_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    options = ["--models", "qwen3", "--lengths", "300", "--placements", "host", "--steps", "1"]
    status = prediction.main([*options, "--json", str(out), "--spill-dir", str(tmp_path)])
    assert status == 0
    (case,) = json.loads(out.read_text())["cases"]
    assert abs(case["errors"]["peak"]) < 0.01
    assert case["predicted"]["step_s"] > 0
    assert "1 cases (0 failed)" in capsys.readouterr().out
