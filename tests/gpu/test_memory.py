"""Memory on a GPU: nothing grows from step to step, and host memory is pinned and of exact size."""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import PreTrainedModel

import memo
from memo.wrap import runtime_of
from offload import Tier
from tests.families.harness import train_step
from tests.gpu.common import batch_on, llama

TOKENS = 2500
"""Of tensors whose sizes are far below the next power of two."""


def step(model: PreTrainedModel, device: torch.device) -> None:
    train_step(model, batch_on(device, 1, TOKENS))
    gc.collect()
    torch.cuda.synchronize(device)


@pytest.mark.parametrize("placement", ["keep", "host", "recompute"])
@pytest.mark.parametrize("skeletal", ["keep", "host"])
def test_device_memory_does_not_grow(placement: str, skeletal: str, device: torch.device) -> None:
    model = memo.wrap(llama(device), placement=placement, skeletal=skeletal, tile_tokens=512)
    allocated, reserved = [], []
    for _ in range(12):
        step(model, device)
        allocated.append(torch.cuda.memory_allocated(device))
        reserved.append(torch.cuda.memory_reserved(device))
    # What a copy has not let go of yet when a step ends differs from step to step.
    assert max(allocated[7:]) <= max(allocated[2:7]), allocated
    assert max(reserved[7:]) <= max(reserved[2:7]), reserved


def test_host_memory_is_pinned_and_no_larger_than_what_lies_there(device: torch.device) -> None:
    model = memo.wrap(llama(device, layers=6, hidden=1024), placement="recompute", skeletal="host")
    for _ in range(3):
        step(model, device)
    held_bytes = memo.report(model).peak_bytes[Tier.HOST]
    assert held_bytes >= 6 * 2 * TOKENS * 1024 * 2
    host = runtime_of(model).store.hosts[device]
    assert held_bytes <= host.pool.size_bytes <= 1.05 * held_bytes + (8 << 20)
    assert all(slab.memory.is_pinned() for slab in host.pool._slabs)


def test_what_is_unwrapped_gives_its_memory_back(device: torch.device) -> None:
    model = llama(device)
    before = torch.cuda.memory_allocated(device)
    memo.wrap(model, placement="host", skeletal="host")
    step(model, device)
    memo.unwrap(model)
    gc.collect()
    torch.cuda.synchronize(device)
    # The libraries' workspaces stay; they are no larger than a few tens of megabytes.
    assert torch.cuda.memory_allocated(device) <= before + (64 << 20)
