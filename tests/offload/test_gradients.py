"""Gradients over tiles: the leaves' sums, in a dtype that keeps what one matmul keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from offload.gradients import ParameterGradients


def _tiled(weight: Tensor, x: Tensor, grad: Tensor) -> ParameterGradients:
    gradients = ParameterGradients({"w": weight})
    for part, grad_part in zip(x.split(1), grad.split(1), strict=True):
        torch.autograd.backward(part @ gradients.leaves["w"], grad_part)
    return gradients


def test_many_half_precision_tiles_lose_no_more_than_one_matmul() -> None:
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.rand(2000, 3).to(dtype)
        grad = torch.rand(2000, 4).to(dtype)
        weight = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
        exact = x.double().T @ grad.double()
        gradients = _tiled(weight, x, grad)
        (found,) = gradients.collect()
        assert found is not None
        assert found.dtype is dtype
        assert gradients.collect() == (None,)
        untiled = x.T @ grad
        worst = (untiled.double() - exact).abs().max()
        assert (found.double() - exact).abs().max() <= 1.5 * worst
        naive = torch.zeros(3, 4, dtype=dtype)
        for row, grad_row in zip(x, grad, strict=True):
            naive += torch.outer(row, grad_row)
        assert (naive.double() - exact).abs().max() > 10 * worst  # the test sees lost bits


def test_sums_are_had_wide_and_forgotten() -> None:
    weight = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    ones = torch.ones(300, 3, dtype=torch.bfloat16), torch.ones(300, 4, dtype=torch.bfloat16)
    gradients = _tiled(weight, *ones)
    (wide,) = gradients.collect_wide()
    assert wide is not None
    assert wide.dtype is torch.float32
    assert wide.unique().tolist() == [300]
    assert gradients.collect() == (None,)


def test_parameters_keep_their_order_and_their_own_gradients() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    frozen, unused = torch.ones(2), torch.ones(2, requires_grad=True)
    gradients = ParameterGradients({"b": b, "frozen": frozen, "unused": unused, "a": a})
    leaves = gradients.leaves
    ((leaves["a"] * 2 + leaves["b"] * 3) * leaves["frozen"]).sum().backward()
    first, none, also_none, last = gradients.collect()
    assert first is not None
    assert last is not None
    assert (first.tolist(), none, also_none, last.tolist()) == ([3, 3], None, None, [2, 2])
    assert a.grad is None
    assert b.grad is None
    assert leaves["a"].data_ptr() == a.data_ptr()
