"""Hugging Face's Trainer, driving ranks that share sequences and one process that does not.

Scope: the jobs, and the same training in one process. Nothing but `parallelism_config` and the
engine's own arguments tells a rank's Trainer from the other's.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import memo
from memo.parallel.wire import Wire
from memo.trainer_seam import parallelism_config
from tests.distributed.zero import set_up_deepspeed
from tests.families.catalogue import family_named
from tests.families.harness import build, random_ids

TOKENS, ROWS = 37, 6

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


class Documents(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of two packed documents each, of other lengths in each row, with labels from another
    place on; with a column that no model takes.
    """

    def __init__(self, rows: int = ROWS, *, first: int = 0) -> None:
        self.rows, self.first = rows, first

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = random_ids(1, TOKENS, seed=1 + self.first + index)[0]
        labels = ids.clone()
        labels[: 5 * index] = -100
        cut = 11 + 3 * index
        positions = torch.cat([torch.arange(cut), torch.arange(TOKENS - cut)])
        return {
            "input_ids": ids,
            "labels": labels,
            "position_ids": positions,
            "title": f"row {index}",
        }


class Streamed(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The same rows, one after another, without a length."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        documents = Documents()
        return (documents[index] for index in range(len(documents)))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training. `degree` ranks share a sequence; `engine`: "ddp", or what an example's
    configuration is for: "fsdp2", "zero2", "zero3". `options` are of `TrainingArguments`;
    `predicts`: evaluation asks for logits, too.
    """

    engine: str = "ddp"
    degree: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    predicts: bool = False
    is_streamed: bool = False
    resume: bool = False

    def arguments(self, folder: Path, groups: int, **more: Any) -> TrainingArguments:
        """Those of one process when `groups` are given to it, else a rank's."""
        settings: dict[str, Any] = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": groups,
            "per_device_eval_batch_size": groups,
            "optim": "sgd",
            "learning_rate": 0.1,
            "max_grad_norm": 0.0,
            "seed": 3,
            "report_to": [],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "log_level": "error",
            "average_tokens_across_devices": True,
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(str(folder), **settings | self.options | more)


@dataclass(frozen=True)
class Outcome:
    """What each parameter became, what was logged at every step, and what evaluation found."""

    weights: dict[str, Tensor]
    logs: list[dict[str, float]]
    evaluated: dict[str, float]
    predictions: NDArray[np.int64] | None
    steps: int


def run_alone(run: Run, ranks: int, folder: Path) -> Outcome:
    """The unwrapped model in one process, whose batch is that of all groups."""
    model = build(family_named("llama"))
    model.config.use_cache = False  # with a cache, transformers forgets where documents begin
    arguments = run.arguments(folder, ranks // run.degree, use_cpu=True)
    return _outcome(_trainer(model, arguments, run), run)


def several(wire: Wire, runs: list[Run], start: Path, folder: Path) -> list[Outcome]:
    """One rank's part in one training after another; `start` has the model."""
    as_torchrun()
    with pytest.MonkeyPatch.context() as patch:
        if any(run.engine != "ddp" for run in runs):
            take_cpus_for_gpus(patch)
        if any(run.engine.startswith("zero") for run in runs):
            set_up_deepspeed()
        return [_over_ranks(run, start, folder / f"{index}") for index, run in enumerate(runs)]


def save_start(folder: Path) -> Path:
    """The model that all trainings start from, in a folder."""
    build(family_named("llama")).save_pretrained(folder)
    return folder


def _over_ranks(run: Run, start: Path, folder: Path) -> Outcome:
    outcome = _outcome(_rank_trainer(run, start, folder), run)
    if not run.resume:
        return outcome
    again = _rank_trainer(run, start, folder / "again")
    return _outcome(again, run, resume=folder / "checkpoint-2")


def _rank_trainer(run: Run, start: Path, folder: Path) -> Trainer:
    """Made in the order of transformers' own scripts: with ZeRO-3 in its arguments, a model comes
    in parts.
    """
    arguments = rank_arguments(run, folder)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    memo.wrap(model, tile_tokens=5, sequence_parallel=run.degree, tiled_loss=not run.predicts)
    return _trainer(model, arguments, run)


def rank_arguments(run: Run, folder: Path) -> TrainingArguments:
    """As a rank has them."""
    return run.arguments(
        folder, 1, parallelism_config=parallelism_config(run.degree), **_engine(run.engine)
    )


def _engine(name: str) -> dict[str, Any]:
    if name == "ddp":
        return {"use_cpu": True}
    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    if name == "fsdp2":
        return {"fsdp": True, "fsdp_config": config}
    return {"deepspeed": config | {"zero_allow_untested_optimizer": True}}  # SGD


def _trainer(model: PreTrainedModel, arguments: TrainingArguments, run: Run) -> Trainer:
    return Trainer(
        model,
        arguments,
        train_dataset=Streamed() if run.is_streamed else Documents(),
        eval_dataset=_evaluated(run),
        compute_metrics=_metrics if run.predicts else None,
        preprocess_logits_for_metrics=_best if run.predicts else None,
    )


def _evaluated(run: Run) -> Documents:
    """Rows that, when predictions are asked for, do not divide evenly among groups."""
    return Documents(5 if run.predicts else 4, first=100)


def _best(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(-1)


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    predictions, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    hits = predictions[:, :-1] == labels[:, 1:]
    counted = labels[:, 1:] != -100
    return {"rows": float(len(hits)), "hits": float((hits & counted).sum())}


def _outcome(trainer: Trainer, run: Run, *, resume: Path | None = None) -> Outcome:
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    predictions, metrics, model = None, trainer.evaluate(), trainer.model
    assert model is not None
    if run.predicts:
        predictions = np.asarray(trainer.predict(_evaluated(run)).predictions)
    return Outcome(
        weights={name: _whole(p) for name, p in model.named_parameters()},
        logs=[entry for entry in trainer.state.log_history if "loss" in entry],
        evaluated=metrics,
        predictions=predictions,
        steps=trainer.state.global_step,
    )


def _whole(param: Tensor) -> Tensor:
    if hasattr(param, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        full: Tensor = safe_get_full_fp32_param(param)
        return full.clone()
    whole = param.full_tensor() if isinstance(param, DTensor) else param
    return whole.detach().clone()


def take_cpus_for_gpus(patch: pytest.MonkeyPatch) -> None:
    """accelerate has ZeRO and FSDP for GPUs only, and knows these by their backend; all else that
    it does with them a CPU does, too.
    """
    patch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    patch.setattr(PartialState, "_prepare_backend", lambda *_: ("gloo", DistributedType.MULTI_GPU))


def as_torchrun() -> None:
    """Set the environment that a rank has under torchrun; this process is ours."""
    rank = str(dist.get_rank())
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": str(dist.get_world_size()),
        "LOCAL_WORLD_SIZE": str(dist.get_world_size()),
        "MASTER_ADDR": socket.gethostname(),
        "MASTER_PORT": "29500",  # never opened: the ranks have met
    }
