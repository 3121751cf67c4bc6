"""Tiled cross-entropy against torch's on whole logits: values and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memo.loss import tiled
from memo.loss.lazy import LogitsRecipe, Operation
from memo.loss.tiled import LossSpec, tiled_cross_entropy
from offload import MemoError

HIDDEN, VOCABULARY, TOKENS = 6, 11, 17


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """34 tokens in tiles of 5, the last one short."""
    monkeypatch.setattr(tiled, "_MIN_TOKENS", 5)
    monkeypatch.setattr(tiled, "_TILE_BYTES", {"cpu": 1})


def _softcapped(logits: Tensor) -> Tensor:
    return torch.tanh(logits / 2) * 2


_SOFTCAP: tuple[Operation, ...] = (
    (torch.div, (2,), {}),
    (torch.tanh, (), {}),
    (torch.mul, (2,), {}),
)


def _labels(ignore_index: int = -100) -> Tensor:
    labels = torch.randint(0, VOCABULARY, (2, TOKENS))
    labels[0, 4:11] = ignore_index  # a whole tile and parts of its neighbours
    labels[1, -1] = ignore_index
    return labels


def _spec(head: nn.Module, *, divisor: Tensor | float | None = None, index: int = -100) -> LossSpec:
    recipe, dtype = LogitsRecipe(head, _SOFTCAP), next(head.parameters()).dtype
    return LossSpec(head, recipe, index, divisor, VOCABULARY, dtype)


def _plain(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    divisor: Tensor | float | None = None,
    index: int = -100,
) -> Tensor:
    logits = _softcapped(head(hidden)).float().flatten(0, 1)
    if divisor is None:
        return functional.cross_entropy(logits, labels.flatten(), ignore_index=index)
    total = functional.cross_entropy(logits, labels.flatten(), ignore_index=index, reduction="sum")
    return total / divisor


def _assert_close(found: Tensor, want: Tensor, tolerance: float = 2e-6) -> None:
    assert found.dtype is want.dtype
    assert float((found - want).detach().norm()) <= tolerance * float(want.detach().norm())


@pytest.mark.parametrize("divisor", [None, 7, 3.5, torch.tensor(29)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, -0.25])
def test_loss_and_gradients_are_the_whole_ones(
    scale: float, bias: bool, divisor: Tensor | float | None
) -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias)
    hidden, labels = torch.randn(2, TOKENS, HIDDEN, requires_grad=True), _labels()
    inputs = [hidden, *head.parameters()]
    want = _plain(head, hidden, labels, divisor)
    found = tiled_cross_entropy(_spec(head, divisor=divisor), hidden, labels)
    _assert_close(found, want)
    expected = torch.autograd.grad(want * scale, inputs)
    for got, tensor in zip(torch.autograd.grad(found * scale, inputs), expected, strict=True):
        _assert_close(got, tensor)


def test_any_index_may_be_ignored() -> None:
    head, hidden = nn.Linear(HIDDEN, VOCABULARY), torch.randn(2, TOKENS, HIDDEN)
    labels = _labels(3)
    found = tiled_cross_entropy(_spec(head, index=3), hidden, labels)
    _assert_close(found, _plain(head, hidden, labels, index=3))


@pytest.mark.parametrize("frozen", ["head", "hidden", "bias"])
def test_what_is_frozen_takes_no_gradient(frozen: str) -> None:
    head = nn.Linear(HIDDEN, VOCABULARY)
    hidden, labels = torch.randn(2, TOKENS, HIDDEN), _labels()
    head.weight.requires_grad_(frozen != "head")
    head.bias.requires_grad_(frozen == "hidden")
    hidden.requires_grad_(frozen != "hidden")
    inputs = [t for t in (hidden, *head.parameters()) if t.requires_grad]
    expected = torch.autograd.grad(_plain(head, hidden, labels), inputs)
    tiled_cross_entropy(_spec(head), hidden, labels).backward()
    for tensor, want in zip(inputs, expected, strict=True):
        assert tensor.grad is not None
        _assert_close(tensor.grad, want)
    assert sum(t.grad is not None for t in (hidden, *head.parameters())) == len(inputs)


def test_without_gradients_the_loss_is_the_same() -> None:
    head, hidden, labels = nn.Linear(HIDDEN, VOCABULARY), torch.randn(2, TOKENS, HIDDEN), _labels()
    with torch.no_grad():
        found = tiled_cross_entropy(_spec(head), hidden, labels)
        _assert_close(found, _plain(head, hidden, labels))
    assert not found.requires_grad


def test_without_a_label_the_loss_is_nan() -> None:
    head, labels = nn.Linear(HIDDEN, VOCABULARY), torch.full((2, TOKENS), -100)
    hidden = torch.randn(2, TOKENS, HIDDEN, requires_grad=True)
    assert _plain(head, hidden, labels).isnan()
    assert tiled_cross_entropy(_spec(head), hidden, labels).isnan()
    with torch.no_grad():
        assert tiled_cross_entropy(_spec(head), hidden, labels).isnan()
        assert tiled_cross_entropy(_spec(head, divisor=4), hidden, labels) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_without_a_label_gradients_are_torchs(dtype: torch.dtype) -> None:
    head, labels = nn.Linear(HIDDEN, VOCABULARY).to(dtype), torch.full((2, TOKENS), -100)
    hidden = torch.randn(2, TOKENS, HIDDEN).to(dtype).requires_grad_()
    inputs = [hidden, *head.parameters()]
    want = torch.autograd.grad(_plain(head, hidden, labels), inputs)
    found = torch.autograd.grad(tiled_cross_entropy(_spec(head), hidden, labels), inputs)
    assert not any(tensor.any() for tensor in want)
    assert all(map(torch.equal, found, want))


def test_a_second_backward_is_refused() -> None:
    head, hidden = nn.Linear(HIDDEN, VOCABULARY), torch.randn(2, TOKENS, HIDDEN)
    loss = tiled_cross_entropy(_spec(head), hidden, _labels())
    loss.backward(retain_graph=True)
    with pytest.raises(MemoError, match="second time"):
        loss.backward()


def test_nan_passes_through() -> None:
    head, labels = nn.Linear(HIDDEN, VOCABULARY), _labels()
    hidden = torch.randn(2, TOKENS, HIDDEN)
    hidden[1, 3, 2] = torch.nan
    hidden.requires_grad_()
    loss = tiled_cross_entropy(_spec(head), hidden, labels)
    assert loss.isnan()
    loss.backward()
    assert head.weight.grad is not None
    assert head.weight.grad.isnan().any()


def test_float16_divides_late() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY).half()
    hidden = torch.randn(2, TOKENS, HIDDEN).half().requires_grad_()
    labels, divisor, scale = _labels(), 4e6, 2.0**22
    exact_head = nn.Linear(HIDDEN, VOCABULARY)
    exact_head.load_state_dict(head.state_dict())
    exact = hidden.detach().float().requires_grad_()
    want = torch.autograd.grad(
        _plain(exact_head, exact, labels, divisor) * scale, [exact, *exact_head.parameters()]
    )
    found = torch.autograd.grad(
        tiled_cross_entropy(_spec(head, divisor=divisor), hidden, labels) * scale,
        [hidden, *head.parameters()],
    )
    for got, tensor in zip(found, want, strict=True):
        assert got.dtype is torch.float16
        _assert_close(got.float(), tensor, 5e-3)


def test_half_precision_is_no_further_off_than_whole_logits() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY).bfloat16()
    hidden, labels = torch.randn(2, TOKENS, HIDDEN).bfloat16().requires_grad_(), _labels()
    exact_head, exact = nn.Linear(HIDDEN, VOCABULARY), hidden.detach().float().requires_grad_()
    exact_head.load_state_dict(head.state_dict())
    inputs = [hidden, *head.parameters()]
    want = torch.autograd.grad(_plain(exact_head, exact, labels), [exact, *exact_head.parameters()])
    theirs = torch.autograd.grad(_plain(head, hidden, labels), inputs)
    ours = torch.autograd.grad(tiled_cross_entropy(_spec(head), hidden, labels), inputs)
    for got, other, tensor in zip(ours, theirs, want, strict=True):
        assert got.dtype is torch.bfloat16
        assert (got - tensor).norm() <= 1.1 * (other - tensor).norm()


def test_logits_of_one_tile_are_all_that_there_is() -> None:
    rows: list[int] = []

    class Head(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            rows.append(input.shape[0])
            return super().forward(input)

    head, hidden = Head(HIDDEN, VOCABULARY), torch.randn(2, TOKENS, HIDDEN, requires_grad=True)
    tiled_cross_entropy(_spec(head), hidden, _labels()).backward()
    assert rows == [5] * 6 + [4]
