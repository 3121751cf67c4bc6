"""A norm run tile by tile: the whole's result and gradients, holding its input alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from offload import run_tokenwise, split_tokens


def _norm(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    return params["scale"] * normed.to(x.dtype) + params["shift"]


def _params() -> dict[str, Tensor]:
    return {
        name: torch.randn(5, dtype=torch.float64).requires_grad_() for name in ("scale", "shift")
    }


@pytest.mark.parametrize("tile_tokens", [1, 3, 7, 100])
def test_gradients_are_the_whole_ones(tile_tokens: int) -> None:
    params, x = _params(), torch.randn(2, 7, 5, dtype=torch.float64).requires_grad_()
    grad = torch.randn(2, 7, 5, dtype=torch.float64)
    inputs = [x, *params.values()]
    whole = _norm(params, x)
    want = torch.autograd.grad(whole, inputs, grad)
    tiled = run_tokenwise(_norm, params, x, split_tokens(7, tile_tokens))
    assert torch.equal(tiled, whole)
    for found, expected in zip(torch.autograd.grad(tiled, inputs, grad), want, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_frozen_parameters_and_inputs_take_none() -> None:
    params, x = _params(), torch.randn(2, 7, 5, dtype=torch.float64)
    params["shift"].requires_grad_(False)
    run_tokenwise(_norm, params, x, split_tokens(7, 3)).sum().backward()
    assert params["scale"].grad is not None
    assert (params["shift"].grad, x.grad) == (None, None)
    with torch.no_grad():
        assert not run_tokenwise(_norm, params, x, split_tokens(7, 3)).requires_grad


def test_only_the_input_is_held() -> None:
    params, x = _params(), torch.randn(2, 70, 5, dtype=torch.float64).requires_grad_()
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run_tokenwise(_norm, params, x, split_tokens(70, 9))
    assert y.requires_grad
    assert held == {t.data_ptr(): t.numel() for t in (x, *params.values())}


def test_autocast_is_found_again() -> None:
    def linear(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return x @ params["w"]

    x, weight = torch.randn(2, 7, 5), torch.randn(5, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = run_tokenwise(linear, {"w": weight}, x, split_tokens(7, 7))
        want = x @ weight
    grad = torch.randn(2, 7, 3).bfloat16()
    assert y.dtype is torch.bfloat16
    (found,) = torch.autograd.grad(y, weight, grad)
    (expected,) = torch.autograd.grad(want, weight, grad)
    assert torch.equal(found, expected)
