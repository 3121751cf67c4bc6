"""Saving and resuming a training run exactly: weights, optimizer, step, random state, data order.

A checkpoint is one file, replaced as a whole, so a run killed while saving keeps the previous one.
It holds the float32 weights, from which the model's own follow; the model that users load is
written apart, with `save_pretrained`.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from memo.training.contracts import RefusedInputError
from memo.training.optimizer import MasterAdamW

CHECKPOINT_NAME = "training_state.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What must be the same for a run to go on bit for bit as if it had never stopped."""

    model: str
    data: str
    tokens: int
    seed: int
    dtype: str


def save_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: MasterAdamW, *, identity: Identity, step: int
) -> None:
    """Write the state after `step` steps into `folder`, in place of an earlier one."""
    state = {
        "identity": {name: getattr(identity, name) for name in Identity.__slots__},
        "step": step,
        "optimizer": optimizer.state_dict(),
        "buffers": dict(model.named_buffers()),
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    partial = folder / (CHECKPOINT_NAME + ".partial")
    torch.save(state, partial)
    partial.replace(folder / CHECKPOINT_NAME)


def saved_dtype(folder: Path) -> str:
    """Return the dtype of the run that `save_checkpoint` saved into `folder`.

    Raises: RefusedInputError if it can't be read.
    """
    return str(_read(folder / CHECKPOINT_NAME, mmap=True)["identity"]["dtype"])


def load_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: MasterAdamW, *, identity: Identity
) -> int:
    """Restore what `save_checkpoint` wrote into `folder`; return how many steps were done.

    Raises: RefusedInputError if it can't be read or is of another run.
    """
    path = folder / CHECKPOINT_NAME
    state = _read(path)
    _check_same(path, state["identity"], identity)
    try:
        optimizer.load_state_dict(state["optimizer"])
        _load_buffers(model, state["buffers"])
    except (KeyError, RuntimeError, ValueError) as exc:
        raise RefusedInputError(f"cannot resume from {path}: it is of another model") from exc
    torch.set_rng_state(state["random"])
    if state["cuda_random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_random"])
    return int(state["step"])


def _read(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as exc:
        raise RefusedInputError(f"cannot resume from {path}: it is damaged or no state") from exc
    return state


def _check_same(path: Path, saved: dict[str, Any], identity: Identity) -> None:
    for name in Identity.__slots__:
        ours = getattr(identity, name)
        if saved.get(name) == ours:
            continue
        differs = f"the {name} differs"
        if name != "data":  # the digests would tell nobody anything
            differs = f"it was made with {name} {saved.get(name)}, not {ours}"
        raise RefusedInputError(
            f"cannot resume from {path}: {differs}; give what the run began with, "
            "or start anew without --resume"
        )


@torch.no_grad()
def _load_buffers(model: PreTrainedModel, saved: dict[str, torch.Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(saved[name])
