"""The process that measures one job: `python -m benchmarks.child JOB.json SAMPLE.json`.

Each phase has a process of its own. Peaks need `exact_malloc` from the start, which makes every
step slower by its page faults, so times are taken without it; profiles disturb both.

The activation peak is the highest resident memory during one full forward and backward, minus
the resident memory before it, when weights and gradient buffers are already allocated and a
short step has loaded the code. Whatever a case allocates for the long step, buffers that it would
keep for later steps too, counts. On CUDA: the same, of the allocator's live bytes.

The step is forward and backward of one sequence of random tokens: no optimizer.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.utils import logging

from benchmarks.cases import prepare
from benchmarks.contracts import Job, Outcome, Phase, Sample, Shape
from benchmarks.profiling import profile_step
from memo.measure import KIB, PeakMemory, exact_malloc, is_out_of_memory, limit_memory

SHORT_TOKENS = 1024
SEED = 0


class Step:
    """A model prepared for a case, and one training step of it at any length."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(SEED)
        self.shape = job.shape
        self.device = torch.device(job.device)
        self.model = build(job.shape, max(job.tokens, SHORT_TOKENS))
        torch.nn.Module.to(self.model, self.device)
        self.model.train()
        self.context = prepare(job.case, self.model, job.tile_tokens)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def run(self, tokens: int) -> float:
        """Forward and backward of `[1, tokens]`; adds to the gradients and returns the loss."""
        ids = self._ids(tokens)
        with self.context():
            if self.shape.head:
                loss = self.model(input_ids=ids, labels=ids).loss
            else:
                loss = self.model(input_ids=ids).last_hidden_state.square().mean()
            loss.backward()
        return float(loss.detach())

    def timed(self, tokens: int) -> tuple[float, float]:
        """Zero the gradients, then run one step; returns its seconds and its loss."""
        self.zero_grad()
        self._synchronize()
        started_s = time.perf_counter()
        loss = self.run(tokens)
        self._synchronize()
        return time.perf_counter() - started_s, loss

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=False)

    def _ids(self, tokens: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(0, self.shape.vocab, (1, tokens), generator=generator)
        return ids.to(self.device)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build(shape: Shape, max_tokens: int) -> PreTrainedModel:
    """A Llama of `shape` with random weights and positions for `max_tokens`."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max_tokens,
        use_cache=False,
    )
    auto: Any = AutoModelForCausalLM if shape.head else AutoModel  # its methods have no types
    model = auto.from_config(config, dtype=getattr(torch, shape.dtype), attn_implementation="sdpa")
    return cast(PreTrainedModel, model)


def measure_time(job: Job) -> Sample:
    step = Step(job)
    step.timed(job.tokens)  # fills malloc's heap and the kernel caches
    cpu_before_s = time.process_time()
    timed = [step.timed(job.tokens) for _ in range(job.steps)]
    cpu_s = time.process_time() - cpu_before_s
    step_s = [seconds for seconds, _ in timed]
    cores_used = cpu_s / sum(step_s)
    return replace(_done(job), step_s=step_s, cores_used=cores_used, loss=timed[-1][1])


def measure_peak(job: Job) -> Sample:
    exact_malloc()
    step = Step(job)
    step.timed(min(job.tokens, SHORT_TOKENS))
    step.zero_grad()
    with PeakMemory(step.device) as peak:
        loss = step.run(job.tokens)
    return replace(
        _done(job),
        growth_bytes=peak.growth_bytes,
        base_bytes=peak.base_bytes,
        method=peak.method,
        loss=loss,
    )


def measure_profile(job: Job) -> Sample:
    step = Step(job)
    step.timed(job.tokens)
    step.zero_grad()
    return replace(_done(job), profile=profile_step(lambda: step.run(job.tokens)))


def measure_fit(job: Job) -> Sample:
    """One step within `limit_bytes`, model and all; the kernel refuses what passes it."""
    assert job.limit_bytes is not None
    exact_malloc()
    with limit_memory(job.limit_bytes):
        seconds, loss = Step(job).timed(job.tokens)
    return replace(_done(job), step_s=[seconds], loss=loss)


MEASURE = {
    Phase.TIME: measure_time,
    Phase.PEAK: measure_peak,
    Phase.PROFILE: measure_profile,
    Phase.FIT: measure_fit,
}


def _done(job: Job) -> Sample:
    """The sample of a job that ends now, for its phase to fill in."""
    return Sample(
        case=job.case,
        tokens=job.tokens,
        phase=job.phase,
        outcome=Outcome.OK,
        process_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB,
    )


def _out_of_memory(job: Job, error: BaseException) -> Sample:
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    return replace(_done(job), outcome=Outcome.DOES_NOT_FIT, message=message)


def main(job_path: Path, sample_path: Path) -> None:
    logging.set_verbosity_error()
    job = Job.from_json(json.loads(job_path.read_text()))
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    try:
        sample = MEASURE[job.phase](job)
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        sample = _out_of_memory(job, error)
    sample_path.write_text(json.dumps(sample.to_json()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
