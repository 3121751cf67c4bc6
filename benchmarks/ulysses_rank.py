"""One rank of the comparison: a model under DeepSpeed's engine, its sequence shared by a peer.

Scope: what happens in a rank's process. Both peers have the same engine, optimizer (plain SGD) and
batch; labels are masked unevenly, so that ranks' losses have different weights.
"""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from transformers import PreTrainedModel
from transformers.utils import logging

import memo
from benchmarks import ulysses_alst
from benchmarks.random_model import SEED, random_model
from benchmarks.ulysses_case import Peer, Phase, UlyssesCase, UlyssesJob, UlyssesSample
from benchmarks.ulysses_ranks import Say
from benchmarks.ulysses_wire import counted_exchanges
from memo.measure import PeakMemory, exact_malloc

LEARNING_RATE = 0.0
"""So that every step's gradients are those of the reference's weights; an update takes as long."""

IN_FLIGHT_BYTES = 4 << 20
HOST_BYTES = 9 << 20
"""Two of the case's x or o on their way: it costs no time that could be measured."""

WARM_UP_TOKENS_PER_RANK = 256
_MALLOC_BYTES = 64 << 10


def built(case: UlyssesCase) -> PreTrainedModel:
    """Random weights, the same on every rank."""
    return random_model(case.config(), getattr(torch, case.dtype), "sdpa")


def batch_of(case: UlyssesCase, tokens: int) -> tuple[Tensor, Tensor]:
    """Ids and labels, [1, tokens]; the first eighth is a prompt that is not learnt."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, case.vocab, (1, tokens), generator=generator)
    labels = ids.clone()
    labels[:, : tokens // 8] = ulysses_alst.IGNORED
    return ids, labels


def reference_gradients(say: Say, case: UlyssesCase, path: str) -> float:
    """One process, the model as transformers has it: its gradients to a file; returns the loss."""
    del say
    model = built(case)
    ids, labels = batch_of(case, case.tokens)
    loss: Tensor = model(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.save({n: p.grad for n, p in model.named_parameters()}, path)
    return float(loss.detach())


def measure(say: Say, job: UlyssesJob) -> UlyssesSample:
    """Warm up, then measure what the job's phase asks for."""
    del say
    if job.phase is Phase.PEAK:
        exact_malloc(_MALLOC_BYTES)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of names that DeepSpeed calls torch by
    trained = _Trained(job)
    trained.step(*batch_of(job.case, WARM_UP_TOKENS_PER_RANK * job.case.ranks))
    whole = batch_of(job.case, job.case.tokens)
    return _peak(trained, whole) if job.phase is Phase.PEAK else _time(trained, whole)


class _Trained:
    """A job's model under the engine."""

    def __init__(self, job: UlyssesJob) -> None:
        # Read when deepspeed is imported, and started; this process is the job's alone.
        os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(dist.get_rank())}
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils import set_z3_leaf_modules

        # An all-reduce that only inference calls, and that every start would compile.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("gloo", verbose=False)  # takes the process group that is there
        self.job = job
        self.model, groups = built(job.case), None
        if job.peer is Peer.ALST:
            groups = ulysses_alst.prepare(self.model, job.case.ranks)
        else:
            memo.wrap(self.model, sequence_parallel=job.case.ranks, **_placement(job))
            if job.case.zero == 3:
                layers = list(self.model.get_submodule("model.layers").children())
                set_z3_leaf_modules(self.model, [type(layers[0])])
        self.engine, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE),
            mpu=groups,
            dist_init_required=False,
            config=_config(job.case),
        )

    def backward(self, ids: Tensor, labels: Tensor) -> float:
        loss: Tensor = self.engine(input_ids=ids, labels=labels).loss
        self.engine.backward(loss)
        return float(loss.detach())

    def step(self, ids: Tensor, labels: Tensor) -> float:
        loss = self.backward(ids, labels)
        self.engine.step()
        return loss


def _placement(job: UlyssesJob) -> dict[str, Any]:
    """On a processor, what waits for the disk is in the same memory: little of it at a time."""
    if job.peer is Peer.MEMO:
        return {}
    return {
        "skeletal": "ssd",
        "spill_dir": job.spill_dir,
        "in_flight_bytes": IN_FLIGHT_BYTES,
        "host_bytes": HOST_BYTES,
    }


def _config(case: UlyssesCase) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": case.zero},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": case.dtype == "bfloat16"},
    }


def _time(trained: _Trained, batch: tuple[Tensor, Tensor]) -> UlyssesSample:
    steps: list[float] = []
    cpus: list[float] = []
    loss = trained.step(*batch)  # fills malloc's heap and the kernel caches
    for _ in range(trained.job.steps):
        dist.barrier()
        started_s, cpu_before_s = time.perf_counter(), time.process_time()
        loss = trained.step(*batch)
        dist.barrier()  # a step is over when it is on all ranks
        steps.append(time.perf_counter() - started_s)
        cpus.append(time.process_time() - cpu_before_s)
    job = trained.job
    return UlyssesSample(
        rank=dist.get_rank(),
        peer=job.peer,
        phase=job.phase,
        loss=loss,
        step_s=tuple(steps),
        cpu_s=tuple(cpus),
    )


def _peak(trained: _Trained, batch: tuple[Tensor, Tensor]) -> UlyssesSample:
    trained.engine.optimizer.zero_grad()
    with counted_exchanges() as counted, PeakMemory() as peak:
        loss = trained.backward(*batch)
    job = trained.job
    compared = _against_reference(trained)
    return UlyssesSample(
        rank=dist.get_rank(),
        peer=job.peer,
        phase=job.phase,
        loss=loss,
        base_bytes=peak.base_bytes,
        growth_bytes=peak.growth_bytes,
        sent_bytes=counted.sent_bytes,
        exchanges=counted.calls,
        **({} if compared is None else {f"gradient_{k}": v for k, v in asdict(compared).items()}),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Comparison:
    error: float
    worst: str
    scale: float
    error_rescaled: float


def _against_reference(trained: _Trained) -> _Comparison | None:
    """All ranks call it: under ZeRO-3 a gradient is gathered."""
    from deepspeed.utils import safe_get_full_grad

    if trained.job.gradients is None:
        return None
    wanted = torch.load(trained.job.gradients)
    pairs = {
        name: (safe_get_full_grad(parameter).double(), wanted[name].double())
        for name, parameter in trained.model.named_parameters()
    }
    product = sum(float((found * want).sum()) for found, want in pairs.values())
    scale = product / sum(float(want.square().sum()) for _, want in pairs.values())
    errors = {name: _error(found, want) for name, (found, want) in pairs.items()}
    worst = max(errors, key=errors.__getitem__)
    rescaled = max(_error(found / scale, want) for found, want in pairs.values())
    return _Comparison(error=errors[worst], worst=worst, scale=scale, error_rescaled=rescaled)


def _error(found: Tensor, want: Tensor) -> float:
    return float((found - want).abs().max() / want.abs().max())
