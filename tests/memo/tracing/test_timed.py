"""Phases of a step on real tensors: a part that sleeps is found where it sleeps, as often as the
real step would run it.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from memo.contracts import LayerMode
from memo.tracing import trace_step
from memo.tracing.timed import time_step
from planner.trace import Pass, Phase, Segment
from tests.memo.tracing.common import config_of

TOKENS, TILE_TOKENS, TILES = 1000, 160, 7
NAP_S = 0.02
LAYER = "LlamaDecoderLayer"


def _model(family: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = config_of(family, **changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


class _Slow(nn.Module):
    """A module that sleeps before it runs. All count together: layers with numbers of their own
    would be of kinds of their own.
    """

    naps = 0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _Slow.naps += 1
        time.sleep(NAP_S)
        return self.inner(*args, **kwargs)


def _slowed(model: Any) -> _Slow:
    """The first layer's MLP; all are slow, so that they are of one kind."""
    _Slow.naps = 0
    for layer in model.model.layers:
        layer.mlp = _Slow(layer.mlp)
    slow = model.model.layers[0].mlp
    assert isinstance(slow, _Slow)
    return slow


def _time(model: Any, **changes: Any) -> dict[Phase, float]:
    return time_step(model, tokens=TOKENS, tile_tokens=TILE_TOKENS, **{"repeats": 1, **changes})


def test_a_tile_counts_for_those_that_it_stands_for() -> None:
    model = _model()
    slow = _slowed(model)
    modes = {LAYER: LayerMode()}
    seconds = _time(model, modes=modes)
    # Two runs, of three tiles each, in forward and again in backward.
    assert slow.naps == 2 * 3 * 2
    for direction in (Pass.FORWARD, Pass.RECOMPUTE):
        napped_s = seconds[LAYER, Segment.POST, direction]
        assert napped_s >= TILES * NAP_S
        assert napped_s < 20 * TILES * NAP_S
    quiet = [
        seconds[LAYER, Segment.PRE, Pass.FORWARD],
        seconds[LAYER, Segment.CORE, Pass.FORWARD],
        seconds["head", Segment.HEAD, Pass.FORWARD],
    ]
    assert min(quiet) < TILES * NAP_S


def test_every_tile_is_run_when_asked() -> None:
    model = _model()
    slow = _slowed(model)
    _time(model, modes={LAYER: LayerMode()}, everything=True)
    assert slow.naps == 2 * TILES * 2


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2"])
def test_the_phases_are_those_of_the_trace(family: str) -> None:
    model = _model(family)
    seconds = _time(model)
    trace = trace_step(config_of(family), tokens=TOKENS, tile_tokens=TILE_TOKENS, device_kind="cpu")
    parts = {layer.name: layer.recomputed for layer in trace.layers}
    expected = {
        (name, op.segment, op.direction)
        for name, part in {**parts, "embedding": trace.embedding, "head": trace.head}.items()
        for block in (part.forward, part.backward)
        for op in block.operations
    }
    assert expected <= seconds.keys()


def test_the_model_is_left_as_it_was() -> None:
    model = _model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grad = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = grad
    state = torch.get_rng_state()
    _time(model)
    assert model.lm_head.weight.grad is grad
    assert bool((grad == 1).all())
    assert all(p.grad is None for p in model.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("argument", ["tokens", "batch", "tile_tokens", "repeats"])
def test_sizes_below_one_are_refused(argument: str) -> None:
    sizes: dict[str, Any] = {"tokens": 10, argument: 0}
    with pytest.raises(ValueError, match=f"{argument} is 0: takes 1 or more"):
        time_step(nn.Linear(1, 1), **sizes)
