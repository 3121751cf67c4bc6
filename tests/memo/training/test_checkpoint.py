"""A checkpoint holds all that a run depends on: weights, moments, buffers, random state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from memo.training.checkpoint import CHECKPOINT_NAME, Identity, load_checkpoint, save_checkpoint
from memo.training.contracts import RefusedInputError
from memo.training.loop import run_step
from memo.training.optimizer import MasterAdamW

IDENTITY = Identity(model="tiny", data="d1", tokens=16, seed=0, dtype="bfloat16")


def _model_with_dropout(dtype: torch.dtype) -> tuple[GPT2LMHeadModel, MasterAdamW]:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    assert config.resid_pdrop > 0
    model = GPT2LMHeadModel(config).to(dtype)  # type: ignore[arg-type]  # transformers' own wrapper
    model.train()
    return model, MasterAdamW(model, lr=1e-2, max_grad_norm=1.0)


def _losses(model: GPT2LMHeadModel, optimizer: MasterAdamW, steps: range) -> list[float]:
    ids: Tensor = torch.arange(16).unsqueeze(0)
    return [run_step(model, optimizer, ids + step, step=step).loss for step in steps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = _losses(*_model_with_dropout(dtype), range(4))
    model, optimizer = _model_with_dropout(dtype)
    first = _losses(model, optimizer, range(2))
    save_checkpoint(tmp_path, model, optimizer, identity=IDENTITY, step=2)

    model, optimizer = _model_with_dropout(dtype)
    torch.manual_seed(99)  # a new process stands anywhere in the random numbers
    assert load_checkpoint(tmp_path, model, optimizer, identity=IDENTITY) == 2
    assert first + _losses(model, optimizer, range(2, 4)) == whole


def test_dropout_shows_a_random_state_that_is_not_restored(tmp_path: Path) -> None:
    """The test above could pass without the random state if dropout did nothing."""
    model, optimizer = _model_with_dropout(torch.float32)
    save_checkpoint(tmp_path, model, optimizer, identity=IDENTITY, step=0)
    expected = _losses(model, optimizer, range(1))
    model, optimizer = _model_with_dropout(torch.float32)
    load_checkpoint(tmp_path, model, optimizer, identity=IDENTITY)
    torch.manual_seed(99)
    assert _losses(model, optimizer, range(1)) != expected


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": "other"}, "with model tiny, not other"),
        ({"tokens": 32}, "with tokens 16, not 32"),
        ({"seed": 1}, "with seed 0, not 1"),
        ({"dtype": "float32"}, "with dtype bfloat16, not float32"),
        ({"data": "d2"}, "the data differs"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    model, optimizer = _model_with_dropout(torch.bfloat16)
    save_checkpoint(tmp_path, model, optimizer, identity=IDENTITY, step=1)
    with pytest.raises(RefusedInputError, match=reason):
        load_checkpoint(tmp_path, model, optimizer, identity=replace(IDENTITY, **changed))


@pytest.mark.parametrize("content", [b"", b"no zip file at all"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    model, optimizer = _model_with_dropout(torch.float32)
    (tmp_path / CHECKPOINT_NAME).write_bytes(content)
    with pytest.raises(RefusedInputError, match="damaged"):
        load_checkpoint(tmp_path, model, optimizer, identity=IDENTITY)


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    model, optimizer = _model_with_dropout(torch.float32)
    save_checkpoint(tmp_path, model, optimizer, identity=IDENTITY, step=1)
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RefusedInputError, match="damaged"):
        load_checkpoint(tmp_path, model, optimizer, identity=IDENTITY)


def test_a_save_that_fails_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = _model_with_dropout(torch.float32)
    save_checkpoint(tmp_path, model, optimizer, identity=IDENTITY, step=1)

    def half_saved(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half_saved)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, model, optimizer, identity=IDENTITY, step=2)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path, model, optimizer, identity=IDENTITY) == 1
