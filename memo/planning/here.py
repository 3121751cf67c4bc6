"""A plan for a model that is in memory, on the machine that it is on.

Scope: the model as a request, and one plan for all ranks of a job. The machine is `machine.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import distributed as dist
from transformers import PreTrainedModel

from memo.planning.applied import why_not
from memo.planning.live import LiveModel
from memo.planning.machine import machine_of
from memo.planning.making import make
from memo.planning.measured import measured_here
from memo.planning.request import PlanRequest, check_sizes, tokens_of
from offload import MemoError
from planner.plan import NoPlan, Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is to be planned: `tokens` of each of `batch` sequences, shared by `sequence_parallel`
    ranks each; `directories` of the SSD tier (none: there is none) and what may be taken of them.
    """

    tokens: int | str
    batch: int
    sequence_parallel: int
    directories: tuple[Path, ...] = ()
    spill_bytes: int | None = None


def plan_here(root: PreTrainedModel, live: LiveModel, asked: Asked) -> Plan:
    """The fastest plan that fits, with the optimizer's states on the device. It takes some seconds,
    most of them to measure the machine and how fast it runs layers like the model's.

    Raises:
        ValueError: for sizes that are not understood.
        MemoError: when nothing fits, the machine's speed cannot be told, or the model is not on the
            device that it would be trained on.
    """
    device = next(root.parameters()).device
    if device.type == "cpu" and torch.cuda.is_available():
        raise MemoError(
            "tokens plans for the device that the model is on, and that is the cpu beside a GPU: "
            "move the model to where it is trained first"
        )
    node = machine_of(root, live, asked.directories, asked.spill_bytes)
    request = PlanRequest(
        name=type(root).__name__,
        config=root.config,
        tokens=tokens_of(asked.tokens),
        node=replace(node, is_here=True),
        train=live.train,
        zero=3 if live.is_divided and live.ranks > 1 else 0,
        offload_optimizer="none",
        sequence_parallel=asked.sequence_parallel,
        batch=asked.batch,
        dtype=live.dtype,
        find_longest=False,
        lay_out=False,
    )
    check_sizes(request)
    request = measured_here(request)
    result = make(request).result
    if isinstance(result, NoPlan):
        longer = make(replace(request, find_longest=True)).result
        raise MemoError(why_not(longer if isinstance(longer, NoPlan) else result))
    return _for_adapters(result, live)


def agreed(plan: Callable[[], Plan], group: dist.ProcessGroup | None) -> Plan:
    """What the first rank of the group (None: of the job) plans, on all of its ranks, which call
    this alike.

    Raises:
        MemoError: on all other ranks, when the first one raises.
    """
    if not dist.is_initialized():
        return plan()
    told: list[tuple[bool, str]] = [(False, "")]
    failure: Exception | None = None
    if dist.get_rank(group) == 0:
        try:
            told = [(True, plan().to_json())]
        except Exception as error:  # noqa: BLE001 - the others wait, and are told whatever it is
            failure, told = error, [(False, str(error))]
    source = 0 if group is None else dist.get_global_rank(group, 0)
    dist.broadcast_object_list(told, src=source, group=group)
    if failure is not None:
        raise failure
    ((is_made, text),) = told
    if not is_made:
        raise MemoError(f"the first rank made no plan: {text}")
    return Plan.from_json(text)


def _for_adapters(plan: Plan, live: LiveModel) -> Plan:
    """Adapters of another rank than those of a trace are the same plan: they are small."""
    if live.train == "full" or plan.workload.parameters == live.parameters:
        return plan
    note = (
        f"planned with adapters at all linear layers, {plan.workload.parameters:,} parameters in "
        f"all; the model has {live.parameters:,}"
    )
    workload = replace(plan.workload, parameters=live.parameters)
    return replace(plan, workload=workload, notes=(*plan.notes, note))
