"""A training step of a Hugging Face model over ranks: every rank is given the whole batch, and runs
the wrapped model on its own tokens.

Scope: the job. What is not installed by `memo.wrap` is put in place here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist

from memo.parallel.agreement import check_same_batch
from memo.parallel.batch import IGNORED, shift_labels, split_batch
from memo.parallel.contracts import SequenceGroup
from memo.parallel.core import ParallelCore
from memo.parallel.loss import token_weighted_mean
from memo.parallel.shares import share_tokens
from memo.parallel.view import SequenceView
from memo.parallel.wire import Wire
from memo.wrap import runtime_of
from tests.families.catalogue import Family
from tests.families.harness import Step, build, train_step, wrap_family

UNIT_TOKENS = 4


def family_step(wire: Wire, family: Family, batch: dict[str, Any], tile_tokens: int) -> Step:
    """The step of one family's model: the loss, and gradients summed over ranks."""
    model = wrap_family(family, build(family), tile_tokens=tile_tokens)
    check_same_batch(batch, wire.group)
    view = view_of(wire.group, batch)
    runtime = runtime_of(model)
    core = ParallelCore(runtime.core, runtime.store, wire, view)
    runtime.core = cast(Any, core)
    labels = shift_labels(batch["labels"])
    count = (labels != IGNORED).sum()
    # Every rank has all labels, so the model's own loss is a rank's part of the mean.
    arguments = split_batch({**batch, "num_items_in_batch": count}, view)

    def loss_of(output: Any) -> Tensor:
        return token_weighted_mean(output.loss, count, wire, divisor=1.0)

    step = train_step(model, arguments, loss_of)
    return replace(step, grads={name: _summed(grad) for name, grad in step.grads.items()})


def view_of(group: SequenceGroup, batch: dict[str, Any]) -> SequenceView:
    """A rank's view of a batch."""
    rows, tokens = batch["input_ids"].shape
    return SequenceView.of(
        group,
        share_tokens(tokens, group.size, UNIT_TOKENS),
        batch_size=rows,
        attention_mask=batch.get("attention_mask"),
        position_ids=batch.get("position_ids"),
    )


def _summed(grad: Tensor | None) -> Tensor | None:
    if grad is not None:
        with torch.no_grad():
            dist.all_reduce(grad)
    return grad
