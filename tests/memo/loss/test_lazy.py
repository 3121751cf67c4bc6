"""Lazy logits: what is recorded, what makes them whole, and that either gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memo.loss.lazy import LazyLogits, LogitsRecipe

HIDDEN, VOCABULARY = 6, 11

RECORDED: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda t: t,
    "scale": lambda t: t * 3,
    "scale from the left": lambda t: 3.0 * t,
    "divide": lambda t: t / 7,
    "divide in place": lambda t: t.__itruediv__(7),
    "multiply in place": lambda t: t.__imul__(0.5),
    "soft-cap": lambda t: 5 * torch.tanh(t / 5),
    "soft-cap in place": lambda t: t.div_(5).tanh_().mul_(5),
    "shift": lambda t: (t + 1 - 0.5).neg(),
    "clamp": lambda t: t.clamp(-0.5, max=0.25),
    "cast": lambda t: t.to(torch.bfloat16).float(),
    "to double": lambda t: t.double() * 2,
    "a tensor of one number": lambda t: t * torch.tensor(0.3),
    "alpha": lambda t: torch.add(t, 2, alpha=3),
    "contiguous": lambda t: t.contiguous(),
}
MADE_WHOLE: dict[str, Callable[[Any], Any]] = {
    "slice": lambda t: t[:, 1:],
    "a bias by word": lambda t: t + torch.arange(float(VOCABULARY)),
    "softmax": lambda t: t.softmax(-1),
    "view": lambda t: t.view(-1, VOCABULARY),
    "maximum": lambda t: t.argmax(-1),
    "from the left": lambda t: torch.ones(VOCABULARY) * t,
    "concatenation": lambda t: torch.cat([t * 2, t], dim=0),
    "after scaling": lambda t: (t * 4).sum(),
    "numbers": lambda t: torch.tensor((t * 2).tolist()),
}


def _lazy(told: list[str] | None = None) -> tuple[LazyLogits, Tensor]:
    """Lazy logits, and the ones that they stand for."""
    head, hidden = nn.Linear(HIDDEN, VOCABULARY), torch.randn(2, 7, HIDDEN)
    recipe = LogitsRecipe(head, (), (told if told is not None else []).append)
    return LazyLogits.of(hidden, recipe, VOCABULARY, torch.float32), head(hidden)


@pytest.mark.parametrize("name", RECORDED)
def test_elementwise_operations_are_recorded(name: str) -> None:
    told: list[str] = []
    lazy, logits = _lazy(told)
    with torch.no_grad():
        want = RECORDED[name](logits.clone())
        found = RECORDED[name](lazy)
    assert isinstance(found, LazyLogits)
    assert (told, found.dtype, found.shape) == ([], want.dtype, want.shape)
    assert torch.equal(found.materialise("the test"), want)
    # On other hidden states, as a tile has them, the recipe does the same.
    part = found.recipe.apply(found.hidden[:, 2:5])
    assert torch.allclose(part, want[:, 2:5], rtol=1e-5)


@pytest.mark.parametrize("name", MADE_WHOLE)
def test_all_else_makes_them_whole_and_says_so(name: str) -> None:
    told: list[str] = []
    lazy, logits = _lazy(told)
    found = MADE_WHOLE[name](lazy)
    assert not isinstance(found, LazyLogits)
    assert told
    assert torch.equal(found, MADE_WHOLE[name](logits))


def test_questions_make_nothing() -> None:
    told: list[str] = []
    lazy, logits = _lazy(told)
    assert (lazy.shape, lazy.size(-1), lazy.ndim, lazy.numel()) == (
        logits.shape,
        VOCABULARY,
        3,
        logits.numel(),
    )
    assert (lazy.dtype, lazy.device, lazy.is_cuda) == (torch.float32, logits.device, False)
    assert "2, 7, 11" in repr(lazy)
    assert told == []


def test_they_take_no_memory() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY)
    hidden = torch.zeros(1, 1, HIDDEN).expand(10**6, 10**6, HIDDEN)
    lazy = LazyLogits.of(hidden, LogitsRecipe(head), VOCABULARY, torch.float32) * 2
    assert lazy.shape == (10**6, 10**6, VOCABULARY)


def test_whole_logits_have_their_graph() -> None:
    head, hidden = nn.Linear(HIDDEN, VOCABULARY), torch.randn(2, 7, HIDDEN, requires_grad=True)
    lazy = LazyLogits.of(hidden, LogitsRecipe(head), VOCABULARY, torch.float32) * 3
    (found,) = torch.autograd.grad(lazy.exp().sum(), hidden)
    (want,) = torch.autograd.grad((head(hidden) * 3).exp().sum(), hidden)
    assert torch.equal(found, want)


def test_operations_in_place_change_the_logits_themselves() -> None:
    lazy, logits = _lazy()
    lazy.mul_(3)
    assert torch.allclose(lazy.materialise("the test"), logits * 3)


def test_the_name_of_the_type_is_a_question() -> None:
    assert _lazy()[0].type() == "torch.FloatTensor"


def test_a_learned_factor_makes_them_whole_and_takes_its_gradient() -> None:
    told: list[str] = []
    lazy, real = _lazy(told)
    scale = nn.Parameter(torch.tensor(2.0))
    (grad,) = torch.autograd.grad((lazy * scale).sum(), scale)
    assert len(told) == 1
    torch.testing.assert_close(grad, real.sum())
