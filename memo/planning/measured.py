"""A request for this machine, with the speed of the model's own layers on it.

Scope: whether that can be measured in a few seconds, and at which length. What is timed is a model
made of the config, with random weights, and never a user's: hooks on its gradients (an optimizer's,
an engine's) would act on what is none of its training.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from memo.planning.calibration import MOST_TOKENS, calibrated
from memo.planning.costing import local_tokens
from memo.planning.request import PlanRequest
from memo.tracing.sampled import SampledModel
from offload import MemoError

BUDGET_S = 3.0
"""Of matmuls at the rate of the machine, in a warm-up and one run that is timed. With attention,
what is not at that rate, and a trace, up to twice as much (measured)."""

LEAST_TOKENS = 512
"""Chosen: kernels are slower at each token of a sequence that is much shorter."""

MOST_WORDS = 4096
"""Of the vocabulary with which the head is timed: what it takes grows with their number, and of
most models it is a matmul that takes longer than a layer."""

MEMORY_SHARE = 1 / 4
"""Of the device, that weights and gradients may take."""

_RUNS = 2
_FLOPS = 8
"""For each token and weight of a step with all tiles recomputed: two forwards, and a backward that
is twice one, each a multiply and an add."""


def measured_here(request: PlanRequest) -> PlanRequest:
    """The request with `slowness`, and with a note that says how it was measured, or why not; as it
    is where it is for another machine.
    """
    if not request.node.is_here or request.slowness:
        return request
    try:
        timed = replace(request, config=_few_words(request.config), train="full")
        sample = SampledModel.of(timed.config, request.torch_dtype)
        tokens = _tokens(request, sample)
        if isinstance(tokens, str):
            return _unmeasured(request, tokens)
        with torch.random.fork_rng(_devices(request)):
            model = sample.fill(torch.device(request.node.device_kind))
            # Adapters hardly change what a layer takes for each of its FLOPs.
            slowness = calibrated(timed, model, most_tokens=tokens, repeats=_RUNS - 1)
    except (MemoError, RuntimeError) as error:  # RuntimeError: out of memory, and kernels that fail
        return _unmeasured(request, str(error).partition("\n")[0])
    note = (
        f"speeds were measured on this machine, with one layer of each class at {tokens:,} tokens"
    )
    return replace(request, slowness=slowness, notes=(*request.notes, note))


def _unmeasured(request: PlanRequest, reason: str) -> PlanRequest:
    note = f"speeds are the machine's, not measured of this model's layers: {reason}"
    return replace(request, notes=(*request.notes, note))


def _few_words(config: PreTrainedConfig) -> PreTrainedConfig:
    text = copy.deepcopy(config.get_text_config())
    text.vocab_size = min(text.vocab_size, MOST_WORDS)
    if text.pad_token_id is not None:
        text.pad_token_id = min(text.pad_token_id, text.vocab_size - 1)
    return text


def _tokens(request: PlanRequest, sample: SampledModel) -> int | str:
    """How many are timed, a power of two; or why none are."""
    size_bytes = 2 * sum(w.numel() * w.element_size() for w in sample.weights)
    free_bytes = int(request.node.hardware.device_bytes * MEMORY_SHARE)
    if size_bytes > free_bytes:
        return f"with gradients they take {size_bytes:,} bytes, of {free_bytes:,} at most"
    hardware = request.node.hardware
    rate = hardware.peak(request.dtype) * hardware.efficiency.matmul
    most = BUDGET_S * rate / (_RUNS * _FLOPS * max(1, sample.matmul_parameters) * request.batch)
    if most < LEAST_TOKENS:
        return f"{LEAST_TOKENS} tokens of them take more than some seconds"
    return min(local_tokens(request), MOST_TOKENS, 1 << (int(most).bit_length() - 1))


def _devices(request: PlanRequest) -> list[int]:
    return [torch.cuda.current_device()] if request.node.device_kind == "cuda" else []
