"""Training under engines that reduce gradients, rank by rank, and the same training in one process.

Scope: the jobs. A sequence group's batch is told by its number; each engine is set up as its own
documentation says, with nothing that is particular to memo but `sequence_parallel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from memo.parallel.wire import Wire
from tests.distributed.zero import under_deepspeed
from tests.families.catalogue import Family, family_named
from tests.families.harness import build, random_batch, wrap_family

TOKENS, LR = 37, 0.5

Updates = dict[str, Tensor]
"""What training added to each parameter."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """`degree` ranks share a sequence; `engine`: "ddp", "fsdp2", "zero0" ... "zero3". `counted`:
    the loss is divided by the number of labels of the whole step, as HF Trainer asks for.
    `momentum`: SGD's. `sizes` are other sizes of the family's model, `zero` is more of DeepSpeed's
    `zero_optimization`, `options` of `memo.wrap`.
    """

    engine: str
    degree: int = 2
    family: str = "llama"
    accumulation: int = 1
    clip: float | None = None
    counted: bool = False
    steps: int = 2
    learning_rate: float = LR
    momentum: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    zero: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def batch(self, group: int, turn: int) -> dict[str, Any]:
        """A group's batch; groups have different numbers of labels, and some ranks have none."""
        batch = random_batch(2, TOKENS, seed=1 + 10 * group + turn)
        batch["labels"][:, : 5 + 11 * group] = -100
        return batch

    def items(self, groups: int, step: int) -> dict[str, Any]:
        """`num_items_in_batch` of a step, over its groups: a group's mean, times the groups."""
        if not self.counted:
            return {}
        turns = range(step * self.accumulation, (step + 1) * self.accumulation)
        counts = [
            int((self.batch(group, turn)["labels"][:, 1:] != -100).sum())
            for group in range(groups)
            for turn in turns
        ]
        return {"num_items_in_batch": torch.tensor(sum(counts) / groups)}

    @property
    def model_family(self) -> Family:
        """The model's, with the sizes that it is built with."""
        family = family_named(self.family)
        return replace(family, sizes={**family.sizes, **self.sizes})

    def loss_alone(self, model: nn.Module, batch: dict[str, Any], items: dict[str, Any]) -> Tensor:
        """A batch's loss in one process, by the unwrapped model."""
        loss: Tensor = model(**batch, **items).loss
        return loss

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Of all its parameters."""
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=self.momentum)

    @property
    def divisor(self) -> int:
        """Of each turn's loss; a loss that is counted is a part of the whole's already."""
        return 1 if self.counted else self.accumulation


def train_alone(training: Training, ranks: int) -> Updates:
    """The unwrapped model in one process, with the batches of all groups."""
    model, groups = build(training.model_family), ranks // training.degree
    before = _copied(model)
    optimizer = training.optimizer(model)
    for step in range(training.steps):
        items = training.items(groups, step)
        for index in range(training.accumulation):
            for group in range(groups):
                batch = training.batch(group, step * training.accumulation + index)
                loss = training.loss_alone(model, batch, items) / groups / training.divisor
                loss.backward()
        _clip(model, training.clip)
        optimizer.step()
        optimizer.zero_grad()
    return _added(model, before)


def train_over_ranks(wire: Wire, training: Training) -> Updates:
    """One rank's part in it, under the engine."""
    model = build(training.model_family)
    before = _copied(model)
    options = {"tile_tokens": 5, "sequence_parallel": training.degree, **training.options}
    wrap_family(training.model_family, model, **options)
    if training.engine.startswith("zero"):
        return _train_under_deepspeed(model, training, before)
    engine = _under(training.engine, model, wire.group.size)
    optimizer = training.optimizer(engine)
    for step in range(training.steps):
        for index in range(training.accumulation):
            with _synchronised(engine, is_last=index == training.accumulation - 1):
                _backward(engine, training, step, index, lambda loss: loss.backward())
        _clip(engine, training.clip)
        optimizer.step()
        optimizer.zero_grad()
    return _added(model, before)


def several(wire: Wire, trainings: list[Training]) -> list[Updates]:
    """One training after another."""
    return [train_over_ranks(wire, training) for training in trainings]


def _backward(
    engine: Any, training: Training, step: int, index: int, backward: Callable[[Tensor], Any]
) -> None:
    group, groups = (
        dist.get_rank() // training.degree,
        dist.get_world_size() // training.degree,
    )
    batch = training.batch(group, step * training.accumulation + index)
    backward(engine(**batch, **training.items(groups, step)).loss / training.divisor)


def _under(name: str, model: nn.Module, ranks: int) -> nn.Module:
    if name == "ddp":
        return DistributedDataParallel(model)
    return under_fsdp2(model, ranks)


def under_fsdp2(model: nn.Module, ranks: int) -> nn.Module:
    """A unit for each layer, and one for the rest."""
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _synchronised(engine: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    if isinstance(engine, FSDPModule):
        engine.set_requires_gradient_sync(is_last)
        return nullcontext()
    assert isinstance(engine, DistributedDataParallel)
    return nullcontext() if is_last else engine.no_sync()


def _train_under_deepspeed(model: nn.Module, training: Training, before: Updates) -> Updates:
    stage = int(training.engine[-1])
    engine = under_deepspeed(
        model,
        training.optimizer(model),
        {"stage": stage, **training.zero},
        accumulation=training.accumulation,
        clip=training.clip,
    )
    from deepspeed.utils import safe_get_full_fp32_param

    def backward(loss: Tensor) -> None:
        engine.backward(loss * training.accumulation)  # it divides by that number itself

    for step in range(training.steps):
        for index in range(training.accumulation):
            _backward(engine, training, step, index, backward)
            engine.step()
    params = dict(model.named_parameters())
    if stage == 0:
        return {name: param.detach() - before[name] for name, param in params.items()}
    return {name: safe_get_full_fp32_param(param) - before[name] for name, param in params.items()}


def _clip(model: nn.Module, norm: float | None) -> None:
    if norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), norm)


def _copied(model: nn.Module) -> Updates:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def _added(model: nn.Module, before: Updates) -> Updates:
    return {name: _whole(param) - before[name] for name, param in model.named_parameters()}


def _whole(param: Tensor) -> Tensor:
    return param.full_tensor().detach() if isinstance(param, DTensor) else param.detach()
