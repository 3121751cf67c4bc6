"""Calls of a wrapped model over ranks that are no training step: what comes back, and what is
refused.

Scope: jobs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForTokenClassification, PreTrainedModel

import memo
from memo.parallel import setup
from memo.parallel.wire import Wire
from memo.wrap import runtime_of
from tests.distributed.models import averaged
from tests.families.catalogue import family_named
from tests.families.harness import Step, build, random_batch, random_ids, train_step

TOKENS = 29


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A call with a batch of TOKENS, and how the model was wrapped."""

    family: str = "llama"
    labels: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    training: bool = True

    def batch(self) -> dict[str, Any]:
        batch = random_batch(2, TOKENS) | dict(self.arguments)
        return batch if self.labels else {n: v for n, v in batch.items() if n != "labels"}


def wrapped(asked: Asked, ranks: int) -> PreTrainedModel:
    """The family's model, over that many ranks."""
    model = build(family_named(asked.family))
    options = {"tile_tokens": 5, "sequence_parallel": ranks, **asked.options}
    memo.wrap(model, **options)
    model.train(asked.training)
    return model


def output_of(wire: Wire, asked: Asked) -> Any:
    """What the model returns, without gradients."""
    with torch.no_grad():
        return wrapped(asked, wire.group.size)(**asked.batch())


def step_of(wire: Wire, asked: Asked, loss_of: Callable[[Any], Tensor]) -> Step:
    """A step whose loss is made of the outputs; gradients averaged over ranks."""
    step = train_step(wrapped(asked, wire.group.size), asked.batch(), loss_of)
    return Step(step.loss, {name: averaged(grad) for name, grad in step.grads.items()})


def error_of(wire: Wire, asked: Asked) -> str:
    """What the wrap or the call is refused with."""
    try:
        wrapped(asked, wire.group.size)(**asked.batch())
    except (memo.MemoError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def error_of_logits(wire: Wire, asked: Asked) -> tuple[str, tuple[int, ...]]:
    """The refusal when logits are read that were not made, and the shape that they have."""
    logits = wrapped(asked, wire.group.size)(**asked.batch()).logits
    try:
        logits.argmax(-1)
    except memo.MemoError as error:
        return str(error), tuple(logits.shape)
    return "", tuple(logits.shape)


def error_on_one(wire: Wire, kind: str) -> str:
    """What every rank is told when one was given something else."""
    odd, asked = wire.group.rank == 1, Asked()
    batch = asked.batch()
    if odd and kind == "input_ids":
        batch["input_ids"] = random_ids(2, TOKENS, seed=9)
    options = {"tile_tokens": 7} if odd and kind == "tile_tokens" else {}
    model = wrapped(Asked(options=options), wire.group.size)
    model.train(not odd or kind != "training")
    try:
        model(**batch)
    except memo.MemoError as error:
        return str(error)
    return ""


def wrap_error_on_one(wire: Wire) -> str:
    """What every rank is told when one finds that the model's tokens cannot be shared."""
    with pytest.MonkeyPatch.context() as patch:
        if wire.group.rank == 1:
            patch.setattr(setup, "check_entrance", _refusing)
        try:
            wrapped(Asked(), wire.group.size)
        except memo.MemoError as error:
            return str(error)
    return ""


def _refusing(*_: Any) -> bool:
    raise memo.MemoError("found to be different")


def foreign_forward(wire: Wire) -> str:
    """The refusal of a layer with somebody else's forward."""
    model = wrapped(Asked(), wire.group.size)
    layer = model.get_submodule("model.layers.1")
    layer.__dict__["forward"] = lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs)
    try:
        model(**Asked().batch())
    except memo.MemoError as error:
        return str(error)
    return ""


def loss_of_its_own(wire: Wire) -> str:
    """The refusal of a model that computes a loss without its loss function."""
    model = wrapped(Asked(), wire.group.size)
    forward = type(model).forward

    class Other(type(model)):  # type: ignore[misc]
        def forward(self, labels: Tensor, **kwargs: Any) -> Any:
            output = forward(self, **kwargs)
            output.loss = output.logits.float().mean()
            return output

    model.__class__ = Other
    try:
        model(**Asked().batch())
    except memo.MemoError as error:
        return str(error)
    return ""


def classifier_error(wire: Wire) -> str:
    """The refusal of labels that are no next tokens."""
    model = AutoModelForTokenClassification.from_config(family_named("llama").config())
    memo.wrap(model, sequence_parallel=wire.group.size)
    try:
        model(input_ids=random_ids(1, TOKENS), labels=torch.zeros(1, TOKENS, dtype=torch.int64))
    except memo.MemoError as error:
        return str(error)
    return ""


def losses_by_group(wire: Wire, how: str) -> tuple[float, ...]:
    """Losses of a model and of its copy, four ranks in groups of two: who is in a group?"""
    sequence: Any = 2
    if how == "mesh":
        sequence = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))["sequence"]
    if how == "across":  # ranks 0 and 2, and 1 and 3
        groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        sequence = groups[wire.group.rank % 2]
    model = wrapped(Asked(options={"sequence_parallel": sequence}), 2)
    group = wire.group.rank % 2 if how == "across" else wire.group.rank // 2
    batch = random_batch(1, TOKENS, seed=group)
    losses = [float(one(**batch).loss) for one in (model, copy.deepcopy(model), model)]
    return tuple(losses)


def alone(group: int) -> float:
    """The loss of a group's batch in one process."""
    with torch.no_grad():
        return float(build(family_named("llama"))(**random_batch(1, TOKENS, seed=group)).loss)


def after_unwrap(wire: Wire) -> tuple[bool, bool]:
    """Whether generation is that of the plain model, and whether unwrapping leaves nothing."""
    plain = build(family_named("llama")).eval()
    model = build(family_named("llama")).eval()
    before = _state(model)
    memo.wrap(model, sequence_parallel=wire.group.size)
    ids = random_ids(2, 7)
    same = torch.equal(
        model.generate(ids, max_new_tokens=4, do_sample=False),
        plain.generate(ids, max_new_tokens=4, do_sample=False),
    )
    model(input_ids=random_ids(2, TOKENS), labels=random_ids(2, TOKENS))
    assert runtime_of(model).parallel is not None
    memo.unwrap(model)
    return same, _state(model) == before


def _state(model: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}
