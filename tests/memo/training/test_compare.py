"""A process of the comparison: how each kind of end is told. What a good end yields: test_demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import psutil
import pytest

from memo.training.compare import run_case
from memo.training.contracts import Job, StepRecord, WrapOptions

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
