"""The comparison's processes: that all cases train the same, and how each kind of end is told."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy
import psutil
import pytest

from memo.training.compare import run_case
from memo.training.contracts import MODES, CaseResult, Job, Mode, StepRecord, WrapOptions

STEPS = 4
TOKENS = 200


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    ids = numpy.random.default_rng(0).integers(0, 250, (2, TOKENS), dtype=numpy.int32)
    numpy.save(tokens, ids)
    return Job(
        mode="plain",
        model=str(tiny_model),
        tokens_file=str(tokens),
        steps=STEPS,
        lr=1e-2,
        max_grad_norm=1.0,
        seed=0,
        dtype="float32",
        threads=1,
        memory_limit_bytes=None,
        wrap=WrapOptions(tile_tokens=64),
    )


@pytest.fixture(scope="module")
def results(job: Job) -> dict[Mode, CaseResult]:
    return {mode: run_case(replace(job, mode=mode), on_step=lambda _: None) for mode in MODES}


def test_every_case_finishes_all_steps_with_figures(results: dict[Mode, CaseResult]) -> None:
    for result in results.values():
        assert (result.fit, result.reason) == ("done", "")
        assert [record.step for record in result.steps] == list(range(STEPS))
        assert result.step_s is not None
        assert 0 < result.base_bytes <= result.peak_bytes
        seconds = [second for second, _ in result.timeline]
        assert seconds == sorted(seconds)
        assert max(size for _, size in result.timeline) <= result.peak_bytes * 1.01


def test_losses_agree_step_by_step_and_fall(results: dict[Mode, CaseResult]) -> None:
    plain = [record.loss for record in results["plain"].steps]
    assert plain[2] < plain[0]  # the second pass over the same two windows
    assert plain[3] < plain[1]
    for result in results.values():
        for ours, theirs in zip(result.steps, plain, strict=True):
            assert math.isclose(ours.loss, theirs, rel_tol=1e-5)


def test_only_the_wrapped_case_has_a_report(results: dict[Mode, CaseResult]) -> None:
    assert "LlamaDecoderLayer" in results["wrapped"].report
    assert results["plain"].report == results["checkpointing"].report == ""


def test_a_case_that_does_not_fit_is_a_result(job: Job) -> None:
    # Less than the process needs to take its data in, more than Python needs to say so.
    result = run_case(replace(job, memory_limit_bytes=1), on_step=lambda _: None)
    assert result.fit == "out of memory"
    assert result.reason
    assert result.step_s is None


def test_a_killed_case_counts_as_out_of_memory_and_keeps_its_steps(job: Job) -> None:
    def kill_worker(_: StepRecord) -> None:
        for worker in _workers():
            worker.kill()

    result = run_case(job, on_step=kill_worker)
    assert result.fit == "out of memory"
    assert "SIGKILL" in result.reason
    assert 0 < len(result.steps) < STEPS


def test_a_case_that_breaks_says_why(job: Job, tmp_path: Path) -> None:
    result = run_case(replace(job, model=str(tmp_path)), on_step=lambda _: None)
    assert result.fit == "failed"
    assert str(tmp_path) in result.reason


def test_no_worker_is_left_when_the_parent_is_interrupted(job: Job) -> None:
    def interrupt(_: StepRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_case(job, on_step=interrupt)
    assert _workers() == []


def _workers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "memo.training.worker" in child.cmdline()]
