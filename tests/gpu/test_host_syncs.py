"""No host synchronisation in a step: the wrapped model makes the host wait no more often than the
unwrapped one does.

Scope: a train step of Llama once warm, as torch's profiler and its own debug mode see it. The ones
that a CPU can show are counted in `tests/behaviour/test_host_syncs.py`.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, masking_utils

import memo
import offload
from tests.gpu.common import batch_on, llama

TOKENS = 2048

# Not `aten::item`: of a tensor of the host's it waits for nothing.
CALLS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "Memcpy DtoH (Device -> Pageable)",
)

OPTIONS: tuple[dict[str, Any], ...] = (
    {"placement": "recompute"},
    {"placement": "host"},
    {"placement": "recompute", "skeletal": "host"},
    {"placement": "host", "skeletal": "host", "in_flight_bytes": 1_000_000},
)

_OURS = tuple(Path(str(module.__file__)).parent for module in (memo, offload))


def step(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    model(**batch).loss.backward()


def warm(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    """Pools, workspaces and the choice of a kernel."""
    for _ in range(3):
        step(model, batch)
    torch.cuda.synchronize()


def synchronisations(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Counter[str]:
    """How often each call that makes the host wait was made, by name."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step(model, batch)
    counts = {event.key: event.count for event in profiler.key_averages()}
    return Counter({name: counts[name] for name in CALLS if counts.get(name)})


@pytest.fixture
def debug_mode() -> Iterator[None]:
    """Back to no checks, whatever a test asked for."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_more_than_the_unwrapped_model(options: dict[str, Any], device: torch.device) -> None:
    plain, batch = llama(device), batch_on(device, 1, TOKENS)
    wrapped = memo.wrap(copy.deepcopy(plain), tile_tokens=256, **options)
    for model in (plain, wrapped):
        warm(model, batch)
    ours, theirs = synchronisations(wrapped, batch), synchronisations(plain, batch)
    assert ours <= theirs, f"wrapped: {ours}; unwrapped: {theirs}"


@pytest.mark.usefixtures("debug_mode")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_none_from_our_own_code(options: dict[str, Any], device: torch.device) -> None:
    wrapped, batch = memo.wrap(llama(device), tile_tokens=256, **options), batch_on(device, 1)
    warm(wrapped, batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step(wrapped, batch)
        torch.cuda.set_sync_debug_mode("default")
    ours = [
        f"{item.filename}:{item.lineno}"
        for item in caught
        if any(folder in Path(item.filename).parents for folder in _OURS)
        and "synchroniz" in str(item.message)
    ]
    assert not ours


@pytest.mark.usefixtures("debug_mode")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_runs_where_synchronising_is_an_error(
    options: dict[str, Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers looks for packed documents once a forward, which is a synchronisation of its own.
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _: None)
    plain, batch = llama(device), batch_on(device, 1)
    wrapped = memo.wrap(copy.deepcopy(plain), tile_tokens=256, **options)
    for model in (plain, wrapped):
        warm(model, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(plain, batch)
    except RuntimeError as error:
        pytest.skip(f"the unwrapped model's step synchronises by itself: {error}")
    step(wrapped, batch)
