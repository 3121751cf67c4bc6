"""How often an engine gathers parameters in a training step.

Scope: the jobs. What sequence parallelism itself sends is counted apart, by its own operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import memo
from memo.parallel.wire import Wire
from tests.distributed.engines import under_fsdp2
from tests.distributed.zero import under_deepspeed
from tests.families.catalogue import family_named
from tests.families.harness import build, random_batch

TOKENS = 37
LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """How a model is wrapped; `tile_tokens` None: it is not."""

    tile_tokens: int | None
    degree: int = 1


@dataclass(frozen=True)
class Gathers:
    """Gathers of parameters in a step's forward and backward; how many tiles a layer had."""

    forward: int
    backward: int
    tiles: int


@dataclass
class _Count:
    gathers: int = 0


def fsdp2(wire: Wire, cases: list[Wrapped]) -> list[Gathers]:
    """A unit for each layer, and one for the rest, which stays whole until backward."""
    return [_fsdp2(case) for case in cases]


def _fsdp2(case: Wrapped) -> Gathers:
    engine = under_fsdp2(_model(case), dist.get_world_size())
    batch = random_batch(1, TOKENS, seed=dist.get_rank() // case.degree)
    _step(engine, batch)  # FSDP2 sets itself up
    with _CountedOperations() as forward:
        loss = engine(**batch).loss
    with _CountedOperations() as backward:
        loss.backward()
    return Gathers(forward.gathers, backward.gathers, _tiles(case))


class _CountedOperations(TorchDispatchMode):
    """FSDP2 gathers a unit's parameters by this operation, and nobody else uses it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gathers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.gathers += func.overloadpacket is torch.ops.c10d._allgather_base_
        return func(*args, **(kwargs or {}))


def zero3(wire: Wire, cases: list[Wrapped]) -> list[Gathers]:
    """Nothing stays whole from forward to backward, and nothing is fetched ahead. Layers of the
    unwrapped model are made leaf modules here, and memo makes them of a wrapped one.
    """
    return [_zero3(case) for case in cases]


def _zero3(case: Wrapped) -> Gathers:
    from deepspeed.utils import set_z3_leaf_modules

    model = _model(case)
    if case.tile_tokens is None:
        set_z3_leaf_modules(model, [type(model.get_submodule("model.layers.0"))])
    engine: Any = under_deepspeed(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
        },
    )
    batch = random_batch(1, TOKENS, seed=dist.get_rank() // case.degree)
    for _ in range(2):  # in the first ones DeepSpeed learns the order of modules
        _step(engine, batch)
    with _counted_gathers() as forward:
        loss = engine(**batch).loss
    with _counted_gathers() as backward:
        engine.backward(loss)
    engine.step()
    return Gathers(forward.gathers, backward.gathers, _tiles(case))


@contextmanager
def _counted_gathers() -> Iterator[_Count]:
    """Of modules' parameters, however many collectives a gather takes."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import (
        PartitionedParameterCoordinator as Coordinator,
    )

    count, name = _Count(), "_PartitionedParameterCoordinator__all_gather_params"
    gather = getattr(Coordinator, name)

    def is_absent(param: Any) -> bool:
        return bool(param.ds_status == ZeroParamStatus.NOT_AVAILABLE)

    def counting(self: object, params: set[nn.Parameter], forward: bool) -> None:
        count.gathers += any(is_absent(param) for param in params)
        gather(self, params, forward)

    setattr(Coordinator, name, counting)
    try:
        yield count
    finally:
        setattr(Coordinator, name, gather)


def _model(case: Wrapped) -> nn.Module:
    model = build(family_named("llama"))
    if case.tile_tokens is not None:
        memo.wrap(model, tile_tokens=case.tile_tokens, sequence_parallel=case.degree)
    return model


def _tiles(case: Wrapped) -> int:
    own = -(-TOKENS // case.degree)
    return 1 if case.tile_tokens is None else -(-own // case.tile_tokens)


def _step(engine: Any, batch: dict[str, torch.Tensor]) -> None:
    loss = engine(**batch).loss
    if hasattr(engine, "backward"):
        engine.backward(loss)
        engine.step()
    else:
        loss.backward()
