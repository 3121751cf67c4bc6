"""One rank of the long run: a model, wrapped, and one step with an optimizer.

Scope: what happens in a rank's process. Resident memory is exact only with `exact_malloc` from the
start, so memory and time are of the same, slower step; a step takes so long that page faults are
little of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers import PreTrainedModel
from transformers.utils import logging

import memo
from benchmarks.long_case import LayerDone, LongCase, RankResult
from benchmarks.random_model import SEED, random_model
from benchmarks.tensor_peak import tensor_peak
from benchmarks.ulysses_ranks import Say
from memo.measure import PeakMemory, exact_malloc
from memo.parallel.shares import share_sequence
from memo.training.optimizer import MasterAdamW
from memo.wrap import runtime_of

WARM_UP_TOKENS_PER_RANK = 512
_MALLOC_BYTES = 64 << 10
"""Blocks from here on go back to the kernel when they are freed."""


def run_rank(say: Say, case: LongCase) -> RankResult:
    """Train one step; layers that are done are said by rank 0."""
    exact_malloc(_MALLOC_BYTES)
    logging.set_verbosity_error()
    model = built(case)
    memo.wrap(model, placement="recompute", sequence_parallel=case.ranks)
    optimizer = MasterAdamW(model, lr=1e-3, max_grad_norm=0.0)
    _step(model, optimizer, _ids(case, WARM_UP_TOKENS_PER_RANK * case.ranks))  # loads the code
    shares = share_sequence(case.tokens, case.ranks)
    base_bytes, wire = _held_bytes(model, optimizer), _wire(model)
    before = {name: count.sent_bytes for name, count in wire.counts.items()}
    ids = _ids(case, case.tokens)
    if dist.get_rank() == 0:
        _say_layers(model, case.layers, say)
    dist.barrier()
    started_s, cpu_before_s = time.perf_counter(), time.process_time()
    with PeakMemory() as resident, tensor_peak() as peak:
        loss = _step(model, optimizer, ids)
    return RankResult(
        rank=dist.get_rank(),
        tokens=shares.tokens[dist.get_rank()],
        base_bytes=base_bytes + 2 * ids.nbytes,
        growth_bytes=peak.growth_bytes,
        resident_bytes=resident.growth_bytes,
        method=resident.method,
        step_s=time.perf_counter() - started_s,
        cpu_s=time.process_time() - cpu_before_s,
        loss=loss,
        sent_bytes={str(n): c.sent_bytes - before[n] for n, c in wire.counts.items()},
    )


def built(case: LongCase) -> PreTrainedModel:
    """Random weights, the same on every rank."""
    return random_model(case.config(), getattr(torch, case.dtype), "sdpa")


def _step(model: PreTrainedModel, optimizer: MasterAdamW, ids: Tensor) -> float:
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    loss.backward()
    for parameter in model.parameters():
        # The average over all ranks, which is what DDP makes of gradients.
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    optimizer.step()
    return float(loss.detach())


def _ids(case: LongCase, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, case.vocab, (1, tokens), generator=generator)


def _held_bytes(model: nn.Module, optimizer: MasterAdamW) -> int:
    """Weights and optimizer states, each storage once."""
    states = optimizer.state_dict()
    tensors = [*model.parameters(), *model.buffers(), *states["masters"].values()]
    for state in states["adamw"].values():
        tensors += [t for s in state["state"].values() for t in s.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _wire(model: nn.Module) -> Any:
    parallel = runtime_of(model).parallel
    assert parallel is not None
    return parallel.wire


def _say_layers(model: PreTrainedModel, layers: int, say: Say) -> None:
    """A layer's forward is over when the module returns, its backward when its gradients are."""
    done = 0

    def tell(*_: Any) -> None:
        nonlocal done
        done += 1
        say(LayerDone(done=done, total=2 * layers))

    for layer in cast(Any, model).model.layers:
        layer.register_forward_hook(_telling(tell))


def _telling(tell: Callable[[], None]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tell()
        x: Tensor = args[0]
        if x.requires_grad:
            x.register_hook(lambda grad: tell())

    return hook
