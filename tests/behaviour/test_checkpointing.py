"""Other savers of memory around a wrapped model or within it: Hugging Face's checkpointing, torch's
checkpoint around the whole, and save_on_cpu.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

import memo
from tests.behaviour.common import (
    PLACEMENTS,
    TILE_TOKENS,
    batch,
    gradients,
    held_bytes,
    models,
    plain_model,
    wrapped_model,
)
from tests.families.harness import assert_same_grads, assert_same_step, train_step

ENABLED = "gradient checkpointing is enabled"
CALLS = pytest.mark.parametrize("method", ["activation_checkpointing", "gradient_checkpointing"])


def switch(model: PreTrainedModel, method: str, what: str = "enable") -> None:
    """Call Hugging Face's method, by its new or its old name."""
    call = getattr(model, f"{method}_{what}", None)
    if call is None:
        pytest.skip(f"this transformers has no {method}_{what}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        call()


def is_checkpointing(model: PreTrainedModel) -> bool:
    """Whether any module is told to."""
    return any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


@CALLS
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_enabled_after_wrap(name: str, method: str) -> None:
    plain, wrapped = models(name)
    expected = train_step(plain, batch())
    switch(wrapped, method)
    with pytest.warns(memo.MemoWarning, match=ENABLED):
        got = train_step(wrapped, batch())
    assert_same_step(got, expected)
    assert memo.report(wrapped).kinds[0].calls == 2
    # Once is enough, and what the user asked for is there when memo is gone.
    assert_same_step(train_step(wrapped, batch()), expected)
    assert is_checkpointing(memo.unwrap(wrapped))
    assert_same_step(train_step(wrapped, batch()), expected)


@CALLS
def test_enabled_before_wrap(method: str) -> None:
    plain, model = plain_model(), plain_model()
    switch(model, method)
    memo.wrap(model, tile_tokens=TILE_TOKENS)
    with pytest.warns(memo.MemoWarning, match=ENABLED):
        got = train_step(model, batch())
    assert_same_step(got, train_step(plain, batch()))
    assert is_checkpointing(model)


@CALLS
def test_disabled_again(method: str) -> None:
    wrapped = wrapped_model()
    switch(wrapped, method)
    switch(wrapped, method, "disable")
    train_step(wrapped, batch())
    assert not memo.report(wrapped).notes


def step_within(model: PreTrainedModel, **options: Any) -> Tensor:
    """The loss by torch's checkpoint around the whole model."""
    one = torch.ones((), requires_grad=True)  # a reentrant checkpoint wants an input with gradient
    loss: Tensor = checkpoint(lambda scale: model(**batch()).loss * scale, one, **options)
    return loss


@pytest.mark.parametrize(
    ("placement", "tiled_loss"),
    [("recompute", True), ("recompute", False), ("keep", True), ("host", False)],
)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_torch_checkpoint_around_the_model(
    use_reentrant: bool, tiled_loss: bool, placement: str
) -> None:
    plain, wrapped = models(placement=placement, tiled_loss=tiled_loss)
    expected = train_step(plain, batch())
    for _ in range(2):
        wrapped.zero_grad()
        loss = step_within(wrapped, use_reentrant=use_reentrant)
        loss.backward()
        assert_same_grads(gradients(wrapped), expected.grads)
    del loss
    assert held_bytes(wrapped) == 0


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_save_on_cpu_around_the_model(placement: Any) -> None:
    plain, wrapped = models(placement=placement)
    with save_on_cpu():
        loss = wrapped(**batch()).loss
    loss.backward()
    assert_same_grads(gradients(wrapped), train_step(plain, batch()).grads)
