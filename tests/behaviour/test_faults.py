"""Exceptions in the middle of forward and of backward: the next step is as if nothing had been, and
the model can be unwrapped.

Scope: a user's hook that raises, and Ctrl-C, wherever a hook can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

import memo
from tests.behaviour.common import (
    Boom,
    attached,
    batch,
    held_bytes,
    models,
    raiser,
    wrapped_model,
)
from tests.behaviour.state import assert_restored, state_of
from tests.families.harness import assert_equal_grads, assert_same_step, train_step

WHERE = (
    "model.embed_tokens",
    "model.layers.0",
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn",
    "model.layers.1.mlp",
    "model.norm",
)

by_placement_and_error = pytest.mark.parametrize(
    ("placement", "error"),
    [("recompute", Boom), ("keep", KeyboardInterrupt), ("host", Boom)],
)


@contextmanager
def interrupted(handle: RemovableHandle, error: type[BaseException]) -> Iterator[None]:
    """What is inside ends with the error that a hook raises."""
    with attached(handle), pytest.raises(error):
        yield


def check_that_it_goes_on(
    fail: Callable[[PreTrainedModel], None],
    *,
    name: str = "llama",
    placement: str = "recompute",
    tiled_loss: bool = True,
    **more_inputs: Any,
) -> None:
    """Fail after a good step; then the same step gives the same bits, nothing is held, and unwrap
    leaves what was there.
    """
    options: dict[str, Any] = {"placement": placement, "tiled_loss": tiled_loss}
    plain, wrapped = models(name, **options)
    inputs = batch() | more_inputs
    expected, before = train_step(plain, inputs), train_step(wrapped, inputs)
    memo.unwrap(wrapped)
    state = state_of(wrapped)
    memo.wrap(wrapped, tile_tokens=5, **options)

    fail(wrapped)
    wrapped.zero_grad()
    after = train_step(wrapped, inputs)
    assert float(after.loss) == float(before.loss)
    assert_equal_grads(after.grads, before.grads)
    assert held_bytes(wrapped) == 0

    fail(wrapped)
    wrapped.zero_grad()
    assert_restored(memo.unwrap(wrapped), state)
    assert_same_step(train_step(wrapped, inputs), expected)


def _weight(model: PreTrainedModel, name: str) -> nn.Parameter:
    return model.get_parameter(f"{name}.weight")


@by_placement_and_error
@pytest.mark.parametrize("where", WHERE)
def test_in_forward(where: str, placement: str, error: type[BaseException]) -> None:
    def fail(model: PreTrainedModel) -> None:
        hook = model.get_submodule(where).register_forward_hook(raiser(error))
        with interrupted(hook, error):
            model(**batch())

    check_that_it_goes_on(fail, placement=placement)


def test_in_the_heads_forward() -> None:
    def fail(model: PreTrainedModel) -> None:
        hook = model.get_submodule("lm_head").register_forward_hook(raiser(Boom))
        with interrupted(hook, Boom):
            model(**batch())

    check_that_it_goes_on(fail, tiled_loss=False)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("model.layers.0", Boom),
        ("model.layers.0.self_attn.q_proj", Boom),
        ("model.layers.1.self_attn", KeyboardInterrupt),
        ("model.layers.1.mlp", Boom),
        ("model.layers.0.mlp", KeyboardInterrupt),
    ],
)
def test_in_recomputation(where: str, error: type[BaseException]) -> None:
    def fail(model: PreTrainedModel) -> None:
        loss = model(**batch()).loss
        if where == "model.layers.0":  # its own hooks run in forward only
            hook = _weight(model, f"{where}.input_layernorm").register_hook(raiser(error))
        else:
            hook = model.get_submodule(where).register_forward_hook(raiser(error))
        with interrupted(hook, error):
            loss.backward()

    check_that_it_goes_on(fail)


@by_placement_and_error
@pytest.mark.parametrize("where", ["model.layers.1.mlp.up_proj", "model.norm", "lm_head"])
def test_in_backward(where: str, placement: str, error: type[BaseException]) -> None:
    def fail(model: PreTrainedModel) -> None:
        loss = model(**batch()).loss
        with interrupted(_weight(model, where).register_hook(raiser(error)), error):
            loss.backward()

    check_that_it_goes_on(fail, placement=placement)


@pytest.mark.parametrize("placement", ["recompute", "keep"])
def test_in_experts(placement: str) -> None:
    def fail(model: PreTrainedModel) -> None:
        hook = model.get_submodule("model.layers.1.mlp.gate").register_forward_hook(raiser(Boom))
        with interrupted(hook, Boom):
            model(**batch(), output_router_logits=True)

    check_that_it_goes_on(fail, name="mixtral", placement=placement, output_router_logits=True)


def test_in_generation() -> None:
    def fail(model: PreTrainedModel) -> None:
        hook = model.get_submodule("model.layers.1").register_forward_hook(raiser(Boom))
        with interrupted(hook, Boom):
            model.generate(batch()["input_ids"], max_new_tokens=2)  # type: ignore[operator]

    check_that_it_goes_on(fail)


def test_a_model_that_gets_a_bad_batch() -> None:
    def fail(model: PreTrainedModel) -> None:
        with pytest.raises(IndexError):
            model(input_ids=batch()["input_ids"] + 10_000, labels=batch()["labels"])

    check_that_it_goes_on(fail)


def test_in_wrapping() -> None:
    model = models()[0]
    train_step(model, batch())
    state = state_of(model)
    hook = model.get_submodule("model.layers.0").register_forward_pre_hook(raiser(Boom))
    with attached(hook), pytest.raises(Boom):
        memo.wrap(model)
    assert_restored(model, state)
    with pytest.raises(memo.MemoError, match="not wrapped"):
        memo.unwrap(model)
    assert_same_step(
        train_step(memo.wrap(model, tile_tokens=5), batch()), train_step(wrapped_model(), batch())
    )
