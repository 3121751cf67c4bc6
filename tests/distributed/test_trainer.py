"""Hugging Face's Trainer over ranks that share sequences does what it does in one process with the
same global batch: weights under plain SGD, logged losses, learning rates, evaluation, resuming.

Scope: DDP, and FSDP2, ZeRO-2 and ZeRO-3 with the examples' configurations; a group for all ranks
and two.
"""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from memo.accelerated import SequenceParallelism
from memo.trainer_seam import parallelism_config
from tests.distributed.ranks import run_ranks
from tests.distributed.trainers import Outcome, Run, run_alone, save_start, several
from tests.distributed.updates import wrong_updates
from tests.families.catalogue import family_named
from tests.families.harness import build

CLIP = 0.3
"""Less than the norm of any step's gradient."""

LOGGED_TOLERANCE = 1e-5


def _runs(engine: str) -> list[Run]:
    """Without and with gradient accumulation and clipping; the first is gone on with from the
    middle.
    """
    once: dict[str, object] = {"num_train_epochs": 1}
    # torch loads no state of an optimizer that has none, as SGD, into FSDP2.
    resume = engine != "fsdp2"
    saved = {"save_strategy": "steps", "save_steps": 2} if resume else {}
    return [
        Run(engine=engine, options=once | saved, resume=resume),
        Run(engine=engine, options={"gradient_accumulation_steps": 3, "max_grad_norm": CLIP}),
    ]


def _more_runs(groups: int) -> list[Run]:
    """Whatever does not depend on the engine."""
    runs = [
        Run(options={"num_train_epochs": 1}, predicts=True),
        Run(options={"max_steps": 3}, is_streamed=True),
    ]
    if groups == 1:  # else it is a mean over groups, and no one process has that
        runs.append(Run(options={"max_steps": 3, "average_tokens_across_devices": False}))
    return runs


def _check(runs: list[Run], ranks: int, folder: Path) -> None:
    start = {n: p.detach() for n, p in build(family_named("llama")).named_parameters()}
    saved = save_start(folder / "start")
    by_rank = run_ranks(several, ranks, folder, runs, saved, folder / "ranks", limit_s=280.0)
    for index, run in enumerate(runs):
        expected = run_alone(run, ranks, folder / f"alone {index}")
        for outcomes in by_rank:
            found: Outcome = outcomes[index]
            wrong = wrong_updates(found.weights, expected.weights, start, expected.steps)
            assert not wrong, f"updates are off: {wrong} in {run}"
            _check_told(found, expected, run)


def _check_told(found: Outcome, expected: Outcome, run: Run) -> None:
    """What is logged and what evaluation tells."""
    assert found.steps == expected.steps, run
    for logged, wanted in zip(found.logs, expected.logs, strict=True):
        for name in ("loss", "grad_norm", "learning_rate", "epoch"):
            assert logged[name] == pytest.approx(wanted[name], rel=LOGGED_TOLERANCE), (name, run)
    for name in ("eval_rows", "eval_hits") if run.predicts else ("eval_loss",):
        assert found.evaluated[name] == pytest.approx(
            expected.evaluated[name], rel=LOGGED_TOLERANCE
        ), run
    if run.predicts:
        assert expected.evaluated["eval_rows"] == 5
        assert found.predictions is not None
        assert (found.predictions == expected.predictions).all(), run


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [2, 4])
def test_ddp(ranks: int, tmp_path: Path) -> None:
    _check([*_runs("ddp"), *_more_runs(ranks // 2)], ranks, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [2, 4])
def test_fsdp2(ranks: int, tmp_path: Path) -> None:
    _check(_runs("fsdp2"), ranks, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install 'memo-offload[deepspeed]'")
def test_zero(ranks: int, tmp_path: Path) -> None:
    _check([*_runs("zero3"), _runs("zero2")[-1]], ranks, tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "takes 1 or more"), (True, "takes a number of ranks"), ("2", "takes a number of ranks")],
)
def test_arguments(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parallelism_config(value)  # type: ignore[arg-type]


def test_a_config_can_be_saved_with_the_arguments() -> None:
    config = pickle.loads(pickle.dumps(parallelism_config(2)))
    assert isinstance(config, SequenceParallelism)
    assert config.degree == 2


def test_one_process_is_as_ever(tmp_path: Path) -> None:
    run = Run(degree=1, options={"num_train_epochs": 1})
    plain = run_alone(run, 1, tmp_path)
    config = {"parallelism_config": parallelism_config(1)}
    with_config = run_alone(Run(degree=1, options=run.options | config), 1, tmp_path)
    assert all(torch.equal(plain.weights[n], with_config.weights[n]) for n in plain.weights)


def test_ranks_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sequence_parallel=2: takes a divisor of the job's 1"):
        run_alone(Run(options={"parallelism_config": parallelism_config(2)}), 2, tmp_path)
