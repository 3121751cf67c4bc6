"""Invariants 1 and 5 on a GPU: placements are equal bit by bit, and bytes in flight keep within
what was asked.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import memo
from offload import Tier
from offload.host_pool import Extent, HostPool
from tests.families.harness import assert_equal_grads, build, train_step
from tests.gpu.common import TILE_TOKENS, batch_on, family, on

OTHERS: tuple[dict[str, Any], ...] = (
    {"placement": "keep"},
    {"placement": "host"},
    {"placement": "host", "in_flight_bytes": 1},
    {"placement": {"keep": 0.3, "host": 0.3, "recompute": 0.4}},
    {"placement": {"host": 0.5, "recompute": 0.5}, "skeletal": "host"},
    {"placement": "recompute", "skeletal": "host"},
    {"placement": "recompute", "skeletal": "host", "in_flight_bytes": 100_000},
    {"placement": "keep", "skeletal": "host"},
    {"placement": "ssd", "skeletal": "ssd"},
    {"placement": {"ssd": 0.5, "host": 0.5}, "skeletal": "ssd", "in_flight_bytes": 1},
    {"placement": "host", "skeletal": "host", "host_bytes": 1_000_000},
)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_equal_bit_by_bit(
    name: str, dtype: torch.dtype, device: torch.device, tmp_path: Path
) -> None:
    model, batch = on(device, build(family(name)), dtype), batch_on(device)
    kept = memo.wrap(copy.deepcopy(model), tile_tokens=TILE_TOKENS)
    expected = train_step(kept, batch)
    for options in OTHERS:
        spill: dict[str, Any] = {}
        if "ssd" in str(options) or "host_bytes" in options:
            spill = {"spill_dir": tmp_path}
        other = memo.wrap(copy.deepcopy(model), tile_tokens=TILE_TOKENS, **options, **spill)
        for _ in range(2):  # the second step finds the pool as the first one left it
            got = train_step(other, batch)
            assert torch.equal(got.loss, expected.loss), options
            assert_equal_grads(got.grads, expected.grads)


@pytest.mark.parametrize("in_flight_bytes", [1, 200_000, 1_000_000])
def test_bytes_in_flight_keep_within_the_budget(
    in_flight_bytes: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, take = [0], HostPool.take

    def watched(pool: HostPool, size_bytes: int) -> Extent | None:
        extent = take(pool, size_bytes)
        assert extent is not None
        sizes.append(extent.size_bytes)
        return extent

    monkeypatch.setattr(HostPool, "take", watched)
    model = on(device, build(family("llama")), torch.bfloat16)
    wrapped = memo.wrap(
        model, tile_tokens=50, placement="host", skeletal="host", in_flight_bytes=in_flight_bytes
    )
    train_step(wrapped, batch_on(device))
    # What is larger than the budget by itself comes back alone.
    report = memo.report(wrapped)
    assert report.moved_bytes[Tier.HOST] > 0
    assert report.in_flight_peak_bytes <= max(in_flight_bytes, *sizes)
