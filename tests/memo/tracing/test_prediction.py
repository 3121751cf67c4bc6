"""The peak that a trace predicts is that of the real step's tensors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from memo.tracing import trace_step
from offload import Placement, spread_placements
from planner.trace import step_peak_bytes
from planner.trace.recorder import peak_bytes
from tests.memo.tracing.common import CONFIGS, all_tiles, config_of, measured, no_tiles

SHAPES = [(1000, 256, 1, torch.float32), (500, 120, 2, torch.bfloat16)]
"""Tokens, tile tokens, batch and dtype; the last tile is short."""

TOLERANCE = 1e-6
"""Of a peak. Real runs draw a random number for each layer, which a trace does not."""

WHOLE_TOLERANCE = 0.03
"""Where a layer runs whole, what it holds may go earlier than where one layer stands for many."""


@pytest.mark.parametrize(("tokens", "tile_tokens", "batch", "dtype"), SHAPES)
@pytest.mark.parametrize("family", CONFIGS)
def test_peak_bytes(
    family: str, tokens: int, tile_tokens: int, batch: int, dtype: torch.dtype
) -> None:
    shape: dict[str, Any] = {"tokens": tokens, "tile_tokens": tile_tokens, "batch": batch}
    config = config_of(family)
    step = trace_step(config, **shape, dtype=dtype, device_kind="cpu")
    is_tiled = all(layer.reason is None for layer in step.layers)
    assert is_tiled == (family != "lfm2")
    tolerance = TOLERANCE if is_tiled else WHOLE_TOLERANCE
    for placement, tiles in (("recompute", no_tiles(step)), ("keep", all_tiles(step))):
        tape = measured(config, **shape, dtype=dtype, placement=placement)
        expected = pytest.approx(peak_bytes(tape), rel=tolerance)
        assert step_peak_bytes(step, tiles) == expected, placement


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_peak_bytes_with_some_tiles_kept(share: float) -> None:
    config = config_of("llama", num_hidden_layers=3)
    shape: dict[str, Any] = {"tokens": 1000, "tile_tokens": 60, "dtype": torch.float32}
    step = trace_step(config, **shape, device_kind="cpu")
    placement = {"keep": share, "recompute": 1 - share}
    fractions = {Placement(name): part for name, part in placement.items()}
    kept = spread_placements(step.layers[0].tiles, fractions).count(Placement.KEEP)
    expected = peak_bytes(measured(config, **shape, placement=placement))
    assert step_peak_bytes(step, [kept] * 3) == pytest.approx(expected, rel=0.03)


def test_peak_bytes_where_pre_graphs_are_held() -> None:
    config = config_of("llama", num_hidden_layers=14)  # 12 or more
    shape: dict[str, Any] = {"tokens": 300, "tile_tokens": 64, "dtype": torch.float32}
    step = trace_step(config, **shape, device_kind="cpu")
    expected = peak_bytes(measured(config, **shape, placement="recompute"))
    assert step_peak_bytes(step, no_tiles(step)) == pytest.approx(expected, rel=TOLERANCE)


_RESIDENT = """
import sys, torch
from memo.measure import PeakMemory, exact_malloc, release_unused_memory
exact_malloc(65536)
import memo
from transformers import AutoModelForCausalLM
from tests.memo.tracing.common import config_of
torch.set_num_threads(1)
config = config_of("llama", hidden_size=512, intermediate_size=1536)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
memo.wrap(model, tile_tokens=512, placement=sys.argv[1])
def step(tokens):
    ids = torch.randint(3, 1000, (1, tokens))
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)
step(600)  # loads kernels
release_unused_memory()
with PeakMemory() as peak:
    step(8192)
print(peak.peak_bytes - peak.base_bytes)
"""


@pytest.mark.parametrize("placement", ["recompute", pytest.param("keep", marks=pytest.mark.long)])
def test_peak_of_the_process(placement: str) -> None:
    """The kernel's own account of a process that runs the step and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", _RESIDENT, placement], capture_output=True, text=True, check=True
    )
    config = config_of("llama", hidden_size=512, intermediate_size=1536)
    shape: dict[str, Any] = {"tokens": 8192, "tile_tokens": 512, "dtype": torch.float32}
    step = trace_step(config, **shape, device_kind="cpu")
    tiles = all_tiles(step) if placement == "keep" else no_tiles(step)
    predicted = step_peak_bytes(step, tiles) - step.base_bytes
    assert predicted == pytest.approx(int(done.stdout), rel=0.03)
