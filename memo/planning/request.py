"""What is to be planned, checked.

Scope: plain data and the refusals of what cannot be; the machine is `node.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from transformers import PreTrainedConfig

from memo.parallel.shares import share_sequence
from memo.planning.names import config_named
from memo.planning.node import Node
from planner.contracts import OffloadOptimizer, Train
from planner.sizes import parse_tokens
from planner.trace import Phase

Zero = Literal[0, 1, 2, 3]
Model = str | Path | PreTrainedConfig

DTYPES = ("bfloat16", "float16", "float32")

STEP_TOLERANCE = 0.01
"""Chosen: hardly anybody sees a hundredth of a step, and what is written wears disks out."""

MOST_TOKENS = 1 << 26
"""Of a GPU's step, all sequences together. The planner looks at 64 times as many, too, and torch
counts elements in 64 bits."""

MOST_TILES = 1 << 20
"""Of all layers together. Each is simulated: so many take a minute and gigabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """A model's step on a node. `zero` and `offload_optimizer` None: to be chosen; `tile_tokens`
    None: what `memo.wrap` chooses. `step_tolerance`: the share of the shortest step that may be
    added to it to write less to the SSD and move less. `compare_degrees`: `sequence_parallel` is
    the largest of those to be compared. `find_longest` and `lay_out`: whether to tell the longest
    sequence that fits, and what a layout of the device's memory takes. `slowness`: how many times
    as long as by the hardware's rates each phase takes, where that was measured; `notes`: on the
    request, for whoever reads its plan.
    """

    name: str
    config: PreTrainedConfig
    tokens: int
    node: Node
    train: Train = "full"
    zero: Zero | None = None
    offload_optimizer: OffloadOptimizer | None = None
    sequence_parallel: int = 1
    batch: int = 1
    dtype: str = "bfloat16"
    tile_tokens: int | None = None
    step_tolerance: float = STEP_TOLERANCE
    compare_degrees: bool = False
    find_longest: bool = True
    lay_out: bool = True
    slowness: Mapping[Phase, float] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_plain(
            tokens=self.tokens,
            train=self.train,
            zero=self.zero,
            offload_optimizer=self.offload_optimizer,
            sequence_parallel=self.sequence_parallel,
            batch=self.batch,
            dtype=self.dtype,
            tile_tokens=self.tile_tokens,
            step_tolerance=self.step_tolerance,
        )
        self._check_states()
        self._check_shares()
        self.node.hardware.peak(self.dtype)

    @property
    def ranks(self) -> int:
        return self.node.hardware.gpus

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def _check_states(self) -> None:
        if self.zero and self.ranks == 1:
            raise ValueError(f"zero is {self.zero}: one GPU has no other to divide states with")
        if self.offload_optimizer == "ssd" and self.node.hardware.disks is None:
            raise ValueError("offload_optimizer is 'ssd', and there is none: takes ssd as well")

    def _check_shares(self) -> None:
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel is {self.sequence_parallel}: takes a divisor of gpus, which is "
                f"{self.ranks}"
            )


def check_plain(
    *,
    tokens: int,
    train: str,
    zero: int | None,
    offload_optimizer: str | None,
    sequence_parallel: int | None,
    batch: int,
    dtype: str,
    tile_tokens: int | None,
    step_tolerance: float,
) -> None:
    """Check what can be told without a model and a machine; None as in `memo.plan`.

    Raises:
        ValueError: for a value that no request takes; opens with its name.
    """
    _check_at_least_one(tokens=tokens, batch=batch)
    given = {"tile_tokens": tile_tokens, "sequence_parallel": sequence_parallel}
    _check_at_least_one(**{name: size for name, size in given.items() if size is not None})
    if not 0 <= step_tolerance < 1:
        raise ValueError(
            f"step_tolerance is {step_tolerance}: takes a share of the step, from 0 to below 1, "
            "such as 0.01"
        )
    _check_word("train", train, get_args(Train))
    _check_word("dtype", dtype, DTYPES)
    if zero is not None and (type(zero) is not int or zero not in get_args(Zero)):
        raise ValueError(f"zero is {zero!r}: takes 0, 1, 2 or 3")
    if offload_optimizer is not None:
        _check_word("offload_optimizer", offload_optimizer, get_args(OffloadOptimizer))
    if sequence_parallel is not None:
        check_shared(tokens, sequence_parallel)


def check_sizes(request: PlanRequest) -> None:
    """Check that its plan can be made in about a minute.

    Raises:
        ValueError: for too many tokens on each GPU, or too many tiles of a size that was asked for.
    """
    local_tokens = share_sequence(request.tokens, request.sequence_parallel).tokens[0]
    if local_tokens * request.batch > MOST_TOKENS:
        raise ValueError(
            f"tokens is {request.tokens}: takes {MOST_TOKENS:,} of a step on each GPU at most, and "
            f"those are {request.batch} x {local_tokens}"
        )
    if request.tile_tokens is None:
        return
    layers = int(getattr(request.config.get_text_config(), "num_hidden_layers", 1) or 1)
    tiles = -(-local_tokens // request.tile_tokens) * layers
    if tiles > MOST_TILES:
        raise ValueError(
            f"tile_tokens is {request.tile_tokens}: all layers together take {MOST_TILES:,} tiles "
            f"on each GPU at most, and those are {tiles:,}"
        )


def check_shared(tokens: int, sequence_parallel: int, name: str = "tokens") -> None:
    """Check that each GPU has a token.

    Raises:
        ValueError: when one has none; opens with `name`.
    """
    if tokens < sequence_parallel:
        raise ValueError(
            f"{name} is {tokens}: {sequence_parallel} GPUs that share a sequence take one each at "
            "least"
        )


def named_config(model: Model) -> tuple[str, PreTrainedConfig]:
    """A model's name and its config; a config is named by its `model_type`.

    Raises:
        ValueError: when there is no such model; names those nearby that are alike.
    """
    if isinstance(model, PreTrainedConfig):
        return str(model.model_type), model
    return str(model), config_named(str(model))


def tokens_of(tokens: int | str, name: str = "tokens") -> int:
    """A number of tokens; text as `1M` or `64k`, of 1024.

    Raises:
        ValueError: for anything else; opens with `name`.
    """
    return parse_tokens(tokens, name) if isinstance(tokens, str) else tokens


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}: takes a whole number of 1 or more")


def _check_word(name: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ValueError(f"{name} is {value!r}: takes {', '.join(words[:-1])} or {words[-1]}")
