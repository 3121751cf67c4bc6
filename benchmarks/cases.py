"""The cases that are compared, by name, and how each prepares a model.

A case is what a user would add to a plain training loop; the model and the step are the same for
all. Names of wrapped cases spell the arguments of `memo.wrap`: `memo:PLACEMENT[/SKELETAL]`, for
instance `memo:recompute`, `memo:host=0.25,recompute=0.75` or `memo:recompute/host`. What the peers
that offload are made of stands in `peers`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks import peers

PLAIN = "plain"
CHECKPOINTING = "checkpointing"
OFFLOAD = "offload"
ALST = "alst"
PEERS = (PLAIN, CHECKPOINTING, "save_on_cpu", OFFLOAD, ALST)
DEFAULT_CASES = (
    PLAIN,
    CHECKPOINTING,
    "save_on_cpu",
    "memo:recompute",
    "memo:keep",
    "memo:host",
    "memo:host=0.5,recompute=0.5",
    "memo:recompute/host",
)
PLACEMENTS = ("keep", "host", "ssd", "recompute")
SKELETALS = ("keep", "host", "ssd")

StepContext = Callable[[], AbstractContextManager[Any]]


def prepare(
    case: str, model: PreTrainedModel, tile_tokens: int | None, spill_dir: str | None = None
) -> StepContext:
    """Set `model` up for `case`, in place; returns the context that each step runs in."""
    if case == CHECKPOINTING:
        _enable_checkpointing(model)
    elif case == "save_on_cpu":
        return lambda: torch.autograd.graph.save_on_cpu(pin_memory=False)
    elif case in (OFFLOAD, ALST):
        peers.offload_layer_inputs(model)
        if case == ALST:
            peers.tile_mlps(model)
            peers.tile_loss(model)
    elif is_memo(case):
        _wrap(case, model, tile_tokens, spill_dir)
    return nullcontext


def is_memo(case: str) -> bool:
    """Whether the model of this case is wrapped."""
    return case.startswith("memo:")


def check(case: str) -> None:
    """Raises ValueError, saying what a case may be, if `case` is none."""
    if case in PEERS:
        return
    if not is_memo(case):
        raise ValueError(
            f"case: got {case!r}, takes {', '.join(PEERS)} or memo:PLACEMENT[/SKELETAL]"
        )
    placement_and_skeletal(case)


def placement_and_skeletal(case: str) -> tuple[str | dict[str, float], str]:
    """The arguments of `memo.wrap` that a case's name spells."""
    spelled, _, skeletal = case.removeprefix("memo:").partition("/")
    if (skeletal or "keep") not in SKELETALS:
        raise ValueError(f"case {case!r}: skeletal takes one of {', '.join(SKELETALS)}")
    names = [part.partition("=")[0] for part in spelled.split(",")]
    if any(name not in PLACEMENTS for name in names):
        raise ValueError(f"case {case!r}: a placement is one of {', '.join(PLACEMENTS)}")
    if "=" not in spelled:
        return spelled, skeletal or "keep"
    return {name: _fraction(case, name, spelled) for name in names}, skeletal or "keep"


def _fraction(case: str, name: str, spelled: str) -> float:
    text = dict(part.partition("=")[::2] for part in spelled.split(","))[name]
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"case {case!r}: {name} takes a fraction, got {text!r}") from error


def _enable_checkpointing(model: PreTrainedModel) -> None:
    """Hugging Face's own, under its new name where the installed transformers has it."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()


def uses_disk(case: str) -> bool:
    """Whether a wrapped case writes to a disk."""
    placement, skeletal = placement_and_skeletal(case)
    return skeletal == "ssd" or placement == "ssd" or "ssd" in placement


def _wrap(
    case: str, model: PreTrainedModel, tile_tokens: int | None, spill_dir: str | None
) -> None:
    import memo  # only wrapped cases need it: the others run as they would without memo

    placement, skeletal = placement_and_skeletal(case)
    memo.wrap(
        model,
        tile_tokens=tile_tokens or "auto",
        placement=placement,
        skeletal=skeletal,
        spill_dir=(spill_dir or tempfile.gettempdir()) if uses_disk(case) else None,
    )
