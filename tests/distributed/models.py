"""A training step of a wrapped Hugging Face model over ranks: every rank is given the whole batch.

Scope: jobs, and what they share.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from transformers import PreTrainedModel

from memo.parallel.contracts import Stored
from memo.parallel.wire import Wire
from memo.wrap import runtime_of
from tests.families.catalogue import Family
from tests.families.harness import Step, build, train_step, wrap_family


def family_step(
    wire: Wire, family: Family, batch: dict[str, Any], tile_tokens: int, trained: str = ""
) -> Step:
    """The step of one family's model: the loss, and gradients averaged over ranks. `trained`: a
    part of the names of parameters that take gradients.
    """
    size = wire.group.size
    model = frozen_but(trained, build(family))
    wrap_family(family, model, tile_tokens=tile_tokens, sequence_parallel=size)
    step = train_step(model, batch)
    return replace(step, grads={name: averaged(grad) for name, grad in step.grads.items()})


def stored_steps(wire: Wire, family: Family, batch: dict[str, Any]) -> list[Step]:
    """A step for everything that can be stored for the backward of attention."""
    steps = []
    for stored in Stored:
        model = build(family)
        options = {"skeletal": "host", "sequence_parallel": wire.group.size}
        wrap_family(family, model, tile_tokens=5, **options)
        parallel = runtime_of(model).parallel
        assert parallel is not None
        parallel.stored = stored
        step = train_step(model, batch)
        steps.append(replace(step, grads={n: averaged(grad) for n, grad in step.grads.items()}))
    return steps


def family_steps(
    wire: Wire, asked: list[tuple[Family, dict[str, Any]]], tile_tokens: int
) -> list[Step]:
    """The steps of several families' models, one after another."""
    return [family_step(wire, family, batch, tile_tokens) for family, batch in asked]


def frozen_but(trained: str, model: PreTrainedModel) -> PreTrainedModel:
    """The model, with gradients for parameters whose names have `trained` in them only."""
    for name, param in model.named_parameters():
        param.requires_grad_(trained in name)
    return model


def averaged(grad: Tensor | None) -> Tensor | None:
    """The mean over all ranks, as DDP makes it."""
    if grad is not None:
        with torch.no_grad():
            dist.all_reduce(grad)
            grad /= dist.get_world_size()
    return grad
