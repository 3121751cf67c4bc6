"""Master weights: what they keep that bf16 weights would lose, and that float32 is AdamW itself."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from memo.training.optimizer import MasterAdamW


def _with_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_updates_too_small_for_bf16_add_up() -> None:
    model = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    optimizer = MasterAdamW(model, lr=1e-4, max_grad_norm=1e9)
    for step in range(1, 101):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        if step == 1:
            assert torch.equal(model.weight, torch.ones_like(model.weight))
    # Adam moves by the learning rate a step: 100 of them make 0.01, two bf16 steps below 1.
    torch.testing.assert_close(model.weight.float(), torch.full((4, 4), 0.99), atol=2e-3, rtol=0)


def test_float32_is_adamw_bit_for_bit() -> None:
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = MasterAdamW(ours, lr=1e-2, max_grad_norm=1e9)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0, fused=True
    )
    for step in range(5):
        _with_gradients(ours, step)
        _with_gradients(theirs, step)
        optimizer.step()
        reference.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_gradients_are_clipped_to_the_norm() -> None:
    small, large = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    large.load_state_dict(small.state_dict())
    pair = [MasterAdamW(model, lr=0.1, max_grad_norm=1.0) for model in (small, large)]
    # After a step with the same direction, Adam's second moment remembers how long gradients were.
    for factor in (1.0, 3.0):
        small.weight.grad = torch.full((4, 4), 0.25)  # a norm of exactly 1
        large.weight.grad = torch.full((4, 4), 0.25 * factor)
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(small.weight, large.weight, rtol=1e-5, atol=1e-7)


def test_the_norm_before_clipping_is_returned_and_zero_means_none() -> None:
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    unclipped = MasterAdamW(model, lr=0.1, max_grad_norm=0.0)
    reference = MasterAdamW(twin, lr=0.1, max_grad_norm=1e9)
    for step in range(2):
        _with_gradients(model, step)
        _with_gradients(twin, step)
        expected = nn.utils.get_total_norm(
            [p.grad for p in model.parameters() if p.grad is not None]
        )
        assert unclipped.step() == pytest.approx(float(expected), rel=1e-6)
        reference.step()
    assert torch.equal(model.weight, twin.weight)


def test_gradients_that_are_no_numbers_change_nothing() -> None:
    model = nn.Linear(3, 2)
    optimizer = MasterAdamW(model, lr=0.1, max_grad_norm=1.0)
    before = copy.deepcopy(model.state_dict())
    _with_gradients(model, 0)
    model.bias.grad = torch.tensor([1.0, float("nan")])
    assert math.isnan(optimizer.step())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert model.weight.grad is None


def test_frozen_parameters_stay_and_gradients_are_dropped() -> None:
    model = nn.Linear(4, 4, dtype=torch.bfloat16)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    optimizer = MasterAdamW(model, lr=0.1, max_grad_norm=1.0)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(model.bias, before)
    assert model.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_restores_weights_and_moments_but_keeps_the_new_rate(dtype: torch.dtype) -> None:
    model = nn.Linear(6, 6, dtype=dtype)
    fresh = copy.deepcopy(model)
    optimizer = MasterAdamW(model, lr=1e-2, max_grad_norm=1.0)
    for step in range(3):
        _with_gradients(model, step)
        optimizer.step()
    restored = MasterAdamW(fresh, lr=1e-2, max_grad_norm=1.0)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(fresh.weight, model.weight)
    for both in (model, fresh):
        _with_gradients(both, 9)
    optimizer.step()
    restored.step()
    assert torch.equal(fresh.weight, model.weight)
    slower = MasterAdamW(fresh, lr=1e-5, max_grad_norm=1.0)
    slower.load_state_dict(optimizer.state_dict())
    before = slower.state_dict()["masters"]["weight"].clone()
    _with_gradients(fresh, 10)
    slower.step()
    moved = (slower.state_dict()["masters"]["weight"] - before).abs().max()
    assert 0 < moved < 1e-4  # the rate of the saved optimizer would move it by about 1e-2


def test_the_state_of_another_model_is_refused() -> None:
    optimizer = MasterAdamW(nn.Linear(4, 4), lr=0.1, max_grad_norm=1.0)
    other = MasterAdamW(nn.Linear(4, 4, bias=False), lr=0.1, max_grad_norm=1.0)
    with pytest.raises(KeyError, match="names differ"):
        other.load_state_dict(optimizer.state_dict())
