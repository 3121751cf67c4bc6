"""Logits: a user who asks for them gets them as before; one who doesn't never has them whole.

Scope: training and evaluation. Generation has a file of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import memo
from tests.behaviour.common import (
    TILE_TOKENS,
    batch,
    models,
    only_ids,
    relative_error,
    set_head_tile,
    wrapped_model,
)
from tests.families.catalogue import VOCABULARY
from tests.families.harness import TOLERANCE, assert_same_step, train_step

INTERMEDIATE = 48
"""The MLP's width in the catalogue: nothing else has it."""

WHOLE = "logits were made whole"


class Rows(TorchDispatchMode):
    """The most rows that any tensor had whose last dim is of `size`; parameters don't count."""

    def __init__(self, size: int, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.most = size, 0
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.shape[-1] == self.size:
                is_parameter = leaf.untyped_storage().data_ptr() in self._known
                self.most = max(self.most, 0 if is_parameter else leaf.numel() // self.size)
        return result


@pytest.fixture
def head_tile(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let the head's tiles be of 7 tokens, in place of as many as fill a processor."""
    set_head_tile(monkeypatch, 7)
    return 7


def weighted(output: Any) -> Tensor:
    """A loss of one's own, in which every logit counts."""
    weights = torch.linspace(-1, 1, output.logits.numel()).view_as(output.logits)
    loss: Tensor = (output.logits * weights).mean()
    return loss


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_training_without_labels(name: str) -> None:
    plain, wrapped = models(name)
    got, expected = wrapped(**only_ids()).logits, plain(**only_ids()).logits
    assert type(got) is Tensor
    assert relative_error(got, expected) <= TOLERANCE
    steps = [train_step(model, only_ids(), weighted) for model in (wrapped, plain)]
    assert_same_step(*steps)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 21, 4])])
def test_logits_to_keep(keep: int | Tensor) -> None:
    plain, wrapped = models()
    inputs = only_ids() | {"logits_to_keep": keep}
    assert wrapped(**inputs).logits.shape == plain(**inputs).logits.shape
    steps = [train_step(model, inputs, weighted) for model in (wrapped, plain)]
    assert_same_step(*steps)


def test_logits_beside_the_loss_are_right_and_warned_of() -> None:
    plain, wrapped = models()

    def both(output: Any) -> Tensor:
        loss: Tensor = output.loss
        return loss + weighted(output)

    with pytest.warns(memo.MemoWarning, match=WHOLE):
        got = train_step(wrapped, batch(), both)
    assert_same_step(got, train_step(plain, batch(), both))
    assert any(WHOLE in note for note in memo.report(wrapped).notes)


def test_accuracy_beside_the_loss() -> None:
    plain, wrapped = models()
    with pytest.warns(memo.MemoWarning, match=WHOLE):
        got = wrapped(**batch()).logits.argmax(-1)
    assert torch.equal(got, plain(**batch()).logits.argmax(-1))


def test_the_output_as_a_tuple() -> None:
    plain, wrapped = models()
    got, expected = wrapped(**batch(), return_dict=False), plain(**batch(), return_dict=False)
    torch.testing.assert_close(got[0], expected[0], rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere", "mixtral"])
def test_evaluation_is_tiled_and_equal(name: str, head_tile: int) -> None:
    plain, wrapped = models(name)
    plain.eval()
    wrapped.eval()
    with torch.no_grad():
        expected = plain(**batch()).loss
        with Rows(VOCABULARY, wrapped) as logits, Rows(INTERMEDIATE, wrapped) as inner:
            got = wrapped(**batch()).loss
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=0)
    assert 0 < logits.most <= head_tile
    assert 0 < inner.most <= 2 * TILE_TOKENS * (2 if name == "mixtral" else 1)  # two experts each


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_gradients_in_evaluation_mode(name: str) -> None:
    plain, wrapped = models(name)
    steps = [train_step(model.eval(), batch()) for model in (wrapped, plain)]
    assert_same_step(*steps)
    assert memo.report(wrapped).kinds[0].calls == 2


def test_training_never_has_whole_logits(head_tile: int) -> None:
    plain, wrapped = models()
    with Rows(VOCABULARY, wrapped) as logits:
        got = train_step(wrapped, batch())
    assert_same_step(got, train_step(plain, batch()))
    # The head's gradient is made as [hidden, vocabulary].
    assert 0 < logits.most <= max(head_tile, plain.config.hidden_size)
    assert logits.most < batch()["input_ids"].numel()


def test_without_a_tiled_loss_logits_are_whole(head_tile: int) -> None:
    # The counter of the tests above can count.
    wrapped = wrapped_model(tiled_loss=False)
    with Rows(VOCABULARY, wrapped) as logits:
        train_step(wrapped, batch())
    assert logits.most == batch()["input_ids"].numel()


def test_logits_of_evaluation_are_there_when_asked_for() -> None:
    plain, wrapped = models()
    plain.eval()
    wrapped.eval()
    with torch.no_grad(), pytest.warns(memo.MemoWarning, match=WHOLE):
        got = wrapped(**batch()).logits.softmax(-1)
    assert relative_error(got, plain(**batch()).logits.softmax(-1)) <= TOLERANCE
