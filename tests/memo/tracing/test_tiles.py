"""One tile that stands for many gives what all of them give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memo.tracing import trace_step
from planner.trace import Block, LayerTrace, PartTrace, StepTrace
from planner.trace.live import expanded_live_bytes, need_of
from tests.memo.tracing.common import config_of


def _blocks(step: StepTrace) -> list[Block]:
    parts: list[PartTrace] = [step.embedding, step.head]
    for layer in step.layers:
        parts += [layer.recomputed, layer.kept]
    return [block for part in parts for block in (part.forward, part.backward)]


def _operations(block: Block) -> list[tuple[object, ...]]:
    """All operations, those of tiles that were left out included."""
    found: list[tuple[object, ...]] = [
        (op.name, op.flops, op.bytes, op.segment, op.direction) for op in block.operations
    ]
    for repeat in reversed(block.repeats):
        found[repeat.stop : repeat.stop] = found[repeat.start : repeat.stop] * repeat.times
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_operation_and_every_live_byte(family: str, dtype: torch.dtype) -> None:
    # Seven tiles, the last one short; a loss of several tiles is tested below.
    shape: dict[str, Any] = {"tokens": 650, "tile_tokens": 100, "dtype": dtype}
    few = trace_step(config_of(family), **shape, device_kind="cpu")
    every = trace_step(config_of(family), **shape, device_kind="cpu", everything=True)
    assert any(repeat.times == 4 for block in _blocks(few) for repeat in block.repeats)
    for got, expected in zip(_blocks(few), _blocks(every), strict=True):
        assert not any(repeat.times for repeat in expected.repeats)
        assert _operations(got) == _operations(expected)
        assert expanded_live_bytes(got) == expanded_live_bytes(expected)
    assert [_figures(layer) for layer in few.layers] == [_figures(layer) for layer in every.layers]


def _figures(layer: LayerTrace) -> tuple[int, ...]:
    return layer.x_bytes, layer.o_bytes, layer.stored_bytes, layer.gradient_bytes, layer.tiles


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_backward_frees_all_that_forward_stored(family: str) -> None:
    step = trace_step(config_of(family), tokens=650, tile_tokens=100, device_kind="cpu")
    for layer in step.layers:
        kept, recomputed = (
            need_of(part.forward).left_bytes + need_of(part.backward).left_bytes
            for part in (layer.kept, layer.recomputed)
        )
        assert kept == recomputed
        stored = need_of(layer.kept.forward).left_bytes
        stored -= need_of(layer.recomputed.forward).left_bytes
        assert stored == pytest.approx(layer.stored_bytes * 650 / 100, rel=1e-3)


def test_a_loss_of_many_tiles() -> None:
    config = config_of("llama", vocab_size=60_000, num_hidden_layers=1)
    shape: dict[str, Any] = {"tokens": 1700, "tile_tokens": 2000, "dtype": torch.float32}
    few = trace_step(config, **shape, device_kind="cpu")
    every = trace_step(config, **shape, device_kind="cpu", everything=True)
    assert sum(repeat.times for repeat in few.head.forward.repeats) == 4
    for got, expected in zip(_blocks(few), _blocks(every), strict=True):
        assert expanded_live_bytes(got) == expanded_live_bytes(expected)
