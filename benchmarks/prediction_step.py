"""A training step of a wrapped model: forward, backward and optimizer, timed and its tensors
accounted for.

Scope: what is measured of one case, in the process that runs it. The peak is of all tensors of the
process but the pool that stands for the host's memory: parameters, gradients, float32 masters and
AdamW's states, and whatever the step makes; each storage counts from the operation that makes it to
its end (`planner.trace.recorder`), and on a GPU as its allocator counts. Times are of other steps,
which nothing looks at.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel

import memo
from benchmarks.prediction_contracts import PLANNED, Job, Measured
from benchmarks.prediction_models import config_of
from benchmarks.random_model import random_model
from benchmarks.tensor_peak import living_tensors
from memo.training.optimizer import MasterAdamW
from memo.wrap import runtime_of
from planner.trace.recorder import Recorder, peak_bytes

DTYPE = torch.bfloat16
SKELETAL = {"keep": "keep", "host": "host", "ssd": "ssd", "recompute": "keep"}
"""Where x and o go with each placement."""


def build(job: Job) -> PreTrainedModel:
    """The job's model on its device, with random weights, in training mode."""
    with torch.device(job.device):
        return random_model(config_of(job.model), DTYPE, "sdpa")


def measure(job: Job) -> Measured:
    """The case of a job: two steps that warm up, the second of which is accounted for, then
    `job.steps` timed ones.
    """
    step = Step(job)
    step.run()
    base, peak = step.accounted()
    memo.report(step.model, reset=True)
    cpu_before_s = time.process_time()
    step_s = [step.timed() for _ in range(job.steps)]
    cpu_s = time.process_time() - cpu_before_s
    exposed_s = sum(lane.exposed_s for lane in memo.report(step.model).lanes.values())
    return Measured(
        step_s=step_s,
        cores_used=cpu_s / sum(step_s),
        exposed_s=exposed_s / job.steps,
        peak_bytes=peak,
        base_bytes=base,
        loss=step.run(),
    )


@dataclass(slots=True)
class Step:
    """The wrapped model of a job, its optimizer, and a sequence of random tokens."""

    job: Job
    model: PreTrainedModel = field(init=False)
    optimizer: MasterAdamW = field(init=False)
    ids: Tensor = field(init=False)
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.model = build(self.job)
        _wrap(self.model, self.job)
        self.optimizer = MasterAdamW(self.model, lr=1e-5, max_grad_norm=0.0)
        words, shape = self.model.config.vocab_size, (1, self.job.tokens)
        self.ids = torch.randint(3, words, shape, device=self.job.device)
        self.labels = self.ids.clone()

    def run(self) -> float:
        """One step; returns its loss."""
        loss: Tensor = self.model(input_ids=self.ids, labels=self.labels).loss
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def timed(self) -> float:
        """Seconds of one step."""
        started_s = time.perf_counter()
        self.run()  # which waits for the device: its loss is read after the update
        return time.perf_counter() - started_s

    def accounted(self) -> tuple[int, int]:
        """Bytes of the process's tensors before one step, and at most during it."""
        return self._allocated() if self.job.device == "cuda" else self._recorded()

    def _allocated(self) -> tuple[int, int]:
        """As PyTorch's allocator counts them."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        self.run()
        return base, torch.cuda.max_memory_allocated()

    def _recorded(self) -> tuple[int, int]:
        pools = [host.pool for host in runtime_of(self.model).store.hosts.values()]
        slabs = {_key(memory) for pool in pools for memory in pool.memories}
        recorder = Recorder(with_costs=False)
        with recorder:
            recorder.know(tensor for tensor in living_tensors() if _key(tensor) not in slabs)
            base = sum(storage.size_bytes for storage in recorder.tape.storages)
            self.run()
        host = {_key(memory) for pool in pools for memory in pool.memories}
        found = (recorder.storage_of(m) for pool in pools for m in pool.memories)
        ids = {storage.id for storage in found if storage is not None}
        assert host == slabs, "the host's pool grew in a step after the first"
        tape = recorder.tape
        tape.storages = [storage for storage in tape.storages if storage.id not in ids]
        return base, peak_bytes(tape)


def _wrap(model: PreTrainedModel, job: Job) -> None:
    (placement,) = job.placements
    if placement == PLANNED:
        memo.wrap(model, plan=job.plan_path, spill_dir=job.spill_dir)
        return
    spills = "ssd" in (placement, SKELETAL[placement])
    memo.wrap(
        model,
        placement=placement,
        skeletal=SKELETAL[placement],
        spill_dir=job.spill_dir if spills else None,
    )


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def median_s(measured: Measured) -> float:
    """Of the timed steps."""
    return median(measured.step_s)
