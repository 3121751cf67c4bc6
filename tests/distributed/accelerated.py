"""A training loop of one's own with accelerate, over ranks that share sequences and in one process.

Scope: the jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DummyOptim, DummyScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import memo
from memo.parallel.wire import Wire
from memo.trainer_seam import parallelism_config
from tests.distributed.trainers import Documents, as_torchrun
from tests.families.catalogue import family_named
from tests.families.harness import build

ACCUMULATION, CLIP, SAMPLES = 3, 0.3, 5


@dataclass(frozen=True)
class Trained:
    """Weights, the learning rate after each step, and rows that were gathered in evaluation."""

    weights: dict[str, Tensor]
    rates: list[float]
    gathered: list[int]
    titles: list[str]


def train_alone(groups: int) -> Trained:
    """One process, which accumulates over the batches of all groups."""
    model = build(family_named("llama"))
    model.config.use_cache = False
    try:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION * groups)
        return _trained(accelerator, model, groups)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # which is the process's


def train_over_ranks(wire: Wire, degree: int) -> Trained:
    """One rank's part in it."""
    as_torchrun()
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=ACCUMULATION,
        parallelism_config=parallelism_config(degree),
    )
    model = build(family_named("llama"))
    memo.wrap(model, tile_tokens=5, sequence_parallel=degree)
    return _trained(accelerator, model, 1)


def _trained(accelerator: Accelerator, model: nn.Module, groups: int) -> Trained:
    """Two passes over the rows; schedules are counted in batches of one process, as accelerate
    does.
    """
    loader: Any = DataLoader(_tensors(6), batch_size=1, shuffle=True)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = LambdaLR(optimizer, lambda batch: 1 / (1 + batch))
    torch.manual_seed(7)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    rates = []
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                for _ in range(groups):  # in one process, as often as there would be processes
                    schedule.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                rates.append(schedule.get_last_lr()[0])
    gathered, titles = _gathered(accelerator)
    plain = accelerator.unwrap_model(model)
    weights = {name: param.detach().clone() for name, param in plain.named_parameters()}
    return Trained(weights, rates, gathered, titles)


def _tensors(rows: int) -> list[dict[str, Tensor]]:
    documents = Documents(rows)
    return [
        {name: value for name, value in documents[index].items() if isinstance(value, Tensor)}
        for index in range(rows)
    ]


def _gathered(accelerator: Accelerator) -> tuple[list[int], list[str]]:
    """The numbers of rows in the order of the data set, each once, as tensors and as objects."""
    rows: Any = [{"row": torch.tensor(index)} for index in range(SAMPLES)]
    loader = accelerator.prepare(DataLoader(rows, batch_size=1))
    numbers, titles = [], []
    for batch in loader:
        numbers += accelerator.gather_for_metrics(batch["row"]).tolist()
        title = [f"row {int(row)}" for row in batch["row"]]
        titles += accelerator.gather_for_metrics(title, use_gather_object=True)
    return numbers, titles


def refusals(wire: Wire) -> list[str]:
    """What is refused, in the order of the code below."""
    as_torchrun()
    accelerator = Accelerator(cpu=True, parallelism_config=parallelism_config(2))
    plain = build(family_named("llama"))
    optimizer = torch.optim.SGD(plain.parameters())
    dummy: Any = DummyScheduler(DummyOptim(plain.parameters()), total_num_steps=3)
    other = memo.wrap(build(family_named("llama")), sequence_parallel=wire.group.size)
    alone = memo.wrap(build(family_named("llama")))
    loader: Any = DataLoader(cast(Any, [1]))
    asked: list[Any] = [plain, other, alone, [optimizer, dummy], loader]
    errors = [_error(accelerator, value) for value in asked]
    accelerator.dataloader_config.dispatch_batches = True
    return [*errors, _error(accelerator, DataLoader(cast(Any, [1])))]


def _error(accelerator: Accelerator, values: Any) -> str:
    try:
        accelerator.prepare(*(values if isinstance(values, list) else [values]))
    except memo.MemoError as error:
        return str(error)
    return ""
