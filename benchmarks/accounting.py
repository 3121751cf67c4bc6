"""The memory of layers that are not run: what 30 layers would hold beside the 2 that are.

Scope: for the search of the longest sequence. A step of two layers has all of a step's transient
memory, and takes a sixteenth of the time of one of 32. What the other layers hold through it is

- their weights and gradients, in the model's dtype (the optimizer's states are taken to be
  elsewhere, as they are under ZeRO-Offload);
- what each leaves on the device between its forward and its backward: read off a short run, in
  proportion to the tokens;

and is really allocated on the device while the step runs (`held`). What each leaves on the host is
arithmetic: bytes of a layer times layers against the machine's memory (`host_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

import memo
from benchmarks.cases import is_memo
from benchmarks.contracts import Job, Sample
from benchmarks.step import Step
from memo.measure import release_unused_memory, resident_bytes
from offload import Tier

CALIBRATION_TOKENS = 4096
_BLOCK_BYTES = 1 << 30
"""Small enough to lie wherever the allocator has room."""

_CGROUP = Path("/sys/fs/cgroup")


def layers_of(model: nn.Module) -> list[nn.Module]:
    """A Llama's decoder layers, with a head or without."""
    body: Any = getattr(model, "model", model)
    return list(body.layers)


def parameter_bytes(module: nn.Module) -> int:
    """Weights and gradients, in the weights' dtype."""
    return 2 * sum(p.numel() * p.element_size() for p in module.parameters())


def held_by_layer(step: Step, job: Job) -> int:
    """Bytes on the device that one layer leaves for backward at `job.tokens`, from a short run."""
    tokens = min(job.tokens, CALIBRATION_TOKENS)
    if is_memo(job.case):
        held_bytes = _kept_in_store(step, tokens)
    else:
        held_bytes = _grown_by_layer(step, tokens)
    return round(held_bytes * job.tokens / tokens)


def _kept_in_store(step: Step, tokens: int) -> int:
    # Not read off the allocator: tensors that are on their way to the host are still there, of two
    # layers at most, whether the model has two or 32.
    memo.report(step.model, reset=True)
    step.run(tokens)
    peaks = memo.report(step.model, reset=True).peak_bytes
    return peaks[Tier.DEVICE] // len(layers_of(step.model))


def _grown_by_layer(step: Step, tokens: int) -> int:
    """Live memory at the end of the second layer's forward less that at the end of the first's."""
    ends: list[int] = []
    first, second, *_ = layers_of(step.model)
    hooks = [
        layer.register_forward_hook(lambda *_: ends.append(_live_bytes(step)))
        for layer in (first, second)
    ]
    step.run(tokens)  # a checkpoint around hooks would call them again, in backward
    for hook in hooks:
        hook.remove()
    return max(0, ends[1] - ends[0])


def _live_bytes(step: Step) -> int:
    if step.device.type != "cuda":
        return resident_bytes()
    step.synchronize()
    return torch.cuda.memory_allocated(step.device)


@contextmanager
def held(step: Step, job: Job, layer_bytes: int) -> Iterator[None]:
    """Allocate what `job.account_layers` more layers hold, each `layer_bytes` beside its
    parameters.
    """
    release_unused_memory()
    if step.device.type == "cuda":
        torch.cuda.empty_cache()
    size_bytes = job.account_layers * (parameter_bytes(layers_of(step.model)[0]) + layer_bytes)
    blocks = [min(_BLOCK_BYTES, size_bytes - at) for at in range(0, size_bytes, _BLOCK_BYTES)]
    ballast = [torch.empty(size, dtype=torch.uint8, device=step.device) for size in blocks]
    try:
        yield
    finally:
        ballast.clear()


def host_tokens(sample: Sample, layers: int, available_bytes: int) -> int | None:
    """The longest sequence of which `layers` layers' share lies within the host's memory, in
    proportion to a sample's; None for a case that holds nothing there.
    """
    if not sample.layer_host_bytes:
        return None
    return available_bytes * sample.tokens // (layers * sample.layer_host_bytes)


def available_host_bytes() -> int:
    """What this process may still take: the machine's, or the control group's where that is
    less.
    """
    found = int(psutil.virtual_memory().available)
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        found = min(found, int(limit.read_text()) - int(used.read_text()))
    return found
