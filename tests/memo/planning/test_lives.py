"""A step's lives add up to the peak that the trace tells, by another way of adding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from memo.planning.arena import flat_problem, lay_out, reserved_bytes
from memo.planning.lives import step_lives
from memo.tracing import trace_step
from planner.contracts import LayerSwap, Placement, SwapPlan, Tier
from planner.layout import Problem, violations
from planner.trace import StepTrace, step_peak_bytes
from tests.memo.tracing.common import CONFIGS, config_of

MIB = 1 << 20


def _trace(family: str = "llama", **changes: Any) -> StepTrace:
    """Wide enough that what matters is above 1 MiB."""
    shape: dict[str, Any] = {"tokens": 9000, "tile_tokens": 2048, "dtype": torch.float32, **changes}
    return trace_step(config_of(family), **shape, device_kind="cuda")


def _swap(trace: StepTrace, kept: int = 0, tier: Tier = Tier.DEVICE, **changes: Any) -> SwapPlan:
    tiles = {layer.name: layer.tiles for layer in trace.layers}

    def layer(name: str) -> LayerSwap:
        here = min(kept, tiles[name])
        counts = {Placement.KEEP: here, Placement.RECOMPUTE: tiles[name] - here}
        return LayerSwap(tiles=counts, x=tier, o=tier)

    layers = tuple(layer(name) for name in trace.order)
    return SwapPlan(**{"tile_tokens": 2048, "in_flight_bytes": 0, "layers": layers, **changes})


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral", "phi"])
def test_the_bound_is_the_peak_of_the_trace(family: str) -> None:
    trace = _trace(family)
    problem = flat_problem(step_lives(trace, _swap(trace), small_bytes=1))
    expected = step_peak_bytes(trace, [0] * len(trace.order)) - trace.base_bytes
    assert _most_live(problem) == pytest.approx(
        expected, rel=0.02
    )  # a layer's gradients come one by one


def _most_live(problem: Problem) -> int:
    """By looking at every moment at which something is born."""
    moments = {buffer.lower for buffer in problem.buffers}
    alive = ((b.size_bytes for b in problem.buffers if b.lower <= t < b.upper) for t in moments)
    return max(map(sum, alive))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_layout_is_valid_and_near_its_bound(family: str) -> None:
    trace = _trace(family)
    arena = lay_out(trace, _swap(trace))
    assert not violations(arena.problem, arena.layout)
    assert arena.lower_bound_bytes <= arena.height_bytes <= 1.03 * arena.lower_bound_bytes
    assert arena.reserved_bytes >= arena.lower_bound_bytes


def test_every_family_has_lives() -> None:
    for family in CONFIGS:
        trace = _trace(family)
        lives = step_lives(trace, _swap(trace))
        assert len(lives.uses) >= 2 * len(trace.order)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral", "phi"])
def test_the_bound_with_all_tiles_kept_is_the_peak_of_the_trace(family: str) -> None:
    """By as much as a tile more: within `post`, the trace's tiles are rebuilt."""
    trace = _trace(family)
    kept = [layer.tiles for name in trace.order for layer in trace.layers if layer.name == name]
    problem = flat_problem(step_lives(trace, _swap(trace, max(kept)), small_bytes=1))
    expected = step_peak_bytes(trace, kept) - trace.base_bytes
    tile = max(layer.stored_bytes for layer in trace.layers)
    assert 0.98 * expected <= _most_live(problem) <= 1.02 * expected + tile


def test_kept_tiles_are_held_to_their_backwards_end() -> None:
    """All layers' but those of layers whose backward is over; the last tile is a short one."""
    trace = _trace()
    (layer,) = trace.layers
    last = round(layer.stored_bytes * (layer.tokens % layer.tile_tokens) / layer.tile_tokens)
    whole = (layer.tiles - 1) * layer.stored_bytes + last
    lives = step_lives(trace, _swap(trace, layer.tiles))
    kept = [b for b in lives.buffers if b.id.startswith("kept")]
    assert [b.size_bytes for b in kept] == [whole] * len(trace.order)
    none, two = (lay_out(trace, _swap(trace, kept)) for kept in (0, 2))
    added = two.lower_bound_bytes - none.lower_bound_bytes
    assert added == pytest.approx(2 * layer.stored_bytes * len(trace.order), rel=0.02)


def test_what_is_moved_is_not_held_but_what_is_in_flight_is() -> None:
    trace = _trace()
    held = lay_out(trace, _swap(trace))
    moved = lay_out(trace, _swap(trace, tier=Tier.HOST))
    flying = lay_out(trace, _swap(trace, tier=Tier.HOST, in_flight_bytes=64 * MIB))
    x_and_o = trace.layers[0].x_bytes + trace.layers[0].o_bytes
    # Of two layers: both's are gone at the head, the last one's own are back in its backward.
    spared = held.lower_bound_bytes - moved.lower_bound_bytes
    assert x_and_o <= spared <= 1.6 * x_and_o
    assert flying.lower_bound_bytes == moved.lower_bound_bytes + 64 * MIB


def test_shared_gradients_are_smaller_in_the_end() -> None:
    trace = _trace()
    ends, last = {}, 0
    for share in (1.0, 0.25, 0.0):
        lives = step_lives(trace, _swap(trace), gradient_share=share)
        last = max(last, *(buffer.upper for buffer in lives.buffers))
        ends[share] = sum(b.size_bytes for b in lives.buffers if b.upper == last)
    assert ends[1.0] == pytest.approx(trace.parameter_bytes, rel=0.01)
    assert ends[0.25] == pytest.approx(ends[1.0] / 4, rel=0.01)
    assert ends[0.0] == 0


def test_a_plan_of_another_model_is_refused() -> None:
    trace = _trace()
    swap = _swap(trace)
    with pytest.raises(ValueError, match="swap has 1 layers: takes 2"):
        step_lives(trace, replace(swap, layers=swap.layers[:1]))


def test_the_allocator_rounds_what_it_reserves() -> None:
    trace = _trace()
    problem = lay_out(trace, _swap(trace)).problem
    assert reserved_bytes(problem) % (2 * MIB) == 0
