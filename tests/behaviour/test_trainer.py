"""Hugging Face's Trainer on a wrapped model: the weights of the Trainer on the unwrapped one.

Scope: two steps of plain SGD, whose updates are the gradients; an optimizer that normalises them
would hide a factor.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

import memo
from tests.behaviour.common import TILE_TOKENS, TOKENS, batch, plain_model
from tests.families.harness import random_ids, train_step

TOLERANCE = 1e-4
"""Of an update of two steps, the second of which starts from weights that differ by rounding."""


class Documents(torch.utils.data.Dataset[dict[str, Any]]):
    """Eight documents, their labels ragged, with a column that the model does not take."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = random_ids(1, TOKENS, seed=index)[0]
        labels = ids.clone()
        labels[: 2 * index] = -100
        return {"input_ids": ids, "labels": labels, "title": f"document {index}"}


def trained(
    model: PreTrainedModel, folder: Path, *, resume: Path | None = None, **options: Any
) -> float:
    """Two steps of two batches of two documents each; the evaluated loss."""
    settings: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "seed": 3,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
    }
    arguments = TrainingArguments(str(folder), **settings | options)
    trainer = Trainer(model, arguments, train_dataset=Documents(), eval_dataset=Documents())
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return float(trainer.evaluate()["eval_loss"])


def assert_same_updates(
    got: PreTrainedModel, expected: PreTrainedModel, start: dict[str, Tensor]
) -> None:
    """Each parameter moved, and moved alike."""
    ours, theirs = got.state_dict(), expected.state_dict()
    for name, before in start.items():
        update = theirs[name] - before
        assert update.norm() > 0, name
        assert (ours[name] - theirs[name]).norm() <= TOLERANCE * update.norm(), name


def pair_of_models() -> tuple[PreTrainedModel, PreTrainedModel, dict[str, Tensor]]:
    """Unwrapped, wrapped, and the weights that both start from."""
    plain = plain_model()
    wrapped = memo.wrap(copy.deepcopy(plain), tile_tokens=TILE_TOKENS)
    return plain, wrapped, copy.deepcopy(plain.state_dict())


@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing_factor": 0.1}],
    ids=["as it is", "label smoothing"],
)
def test_same_weights_and_evaluation(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, wrapped, start = pair_of_models()
    expected = trained(plain, tmp_path, **options)
    got = trained(wrapped, tmp_path, **options)
    assert_same_updates(wrapped, plain, start)
    assert got == pytest.approx(expected, rel=TOLERANCE)
    assert memo.report(wrapped).kinds[0].calls == 2 * 2 * 2  # layers, steps, parts


@pytest.mark.parametrize("argument", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_is_refused_with_a_warning(tmp_path: Path, argument: str) -> None:
    if argument not in TrainingArguments.__dataclass_fields__:
        pytest.skip(f"this transformers has no {argument}")
    plain, wrapped, start = pair_of_models()
    trained(plain, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # one of the two names is the old one
        with pytest.warns(memo.MemoWarning, match="gradient checkpointing is enabled"):
            trained(wrapped, tmp_path, **dict[str, Any]({argument: True}))
    assert_same_updates(wrapped, plain, start)
    report = memo.report(wrapped)
    assert report.kinds[0].calls == 2 * 2 * 2
    assert any("checkpointing" in note for note in report.notes)


def test_bf16(tmp_path: Path) -> None:
    plain, wrapped, start = pair_of_models()
    for model in (plain, wrapped):
        trained(model, tmp_path, bf16=True)
    ours, theirs = wrapped.state_dict(), plain.state_dict()
    for name, before in start.items():
        update = theirs[name] - before
        # Two bf16 models agree to a few units of bf16's eight bits, and no better.
        assert (ours[name] - theirs[name]).norm() <= 0.1 * update.norm(), name


def test_saving_and_resuming(tmp_path: Path) -> None:
    plain, wrapped, start = pair_of_models()
    trained(plain, tmp_path / "plain")
    trained(wrapped, tmp_path / "ours", save_strategy="steps", save_steps=1)
    resumed = memo.wrap(plain_model(), tile_tokens=TILE_TOKENS)
    trained(resumed, tmp_path / "again", resume=tmp_path / "ours" / "checkpoint-1")
    assert_same_updates(resumed, plain, start)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours" / "checkpoint-2")
    assert_same_updates(loaded, plain, start)


def test_the_unwrapped_model_trains_on_by_itself(tmp_path: Path) -> None:
    plain, wrapped, _ = pair_of_models()
    for model in (plain, wrapped):
        trained(model, tmp_path)
    memo.unwrap(wrapped)
    losses = [float(train_step(model.train(), batch()).loss) for model in (plain, wrapped)]
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE)
