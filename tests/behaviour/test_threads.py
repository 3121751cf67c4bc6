"""Models in threads: each in its own is as undisturbed as alone, and the same model in two is
refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import memo
from tests.behaviour.common import (
    TILE_TOKENS,
    attached,
    batch,
    gradients,
    models,
    plain_model,
    wrapped_model,
)
from tests.families.harness import (
    Step,
    assert_equal_grads,
    assert_same_step,
    train_step,
)

WAIT_S = 30.0
"""For another thread; only a deadlock takes so long."""


def in_threads(*works: Callable[[], None]) -> None:
    """Run all at once, and raise what any of them raised."""
    errors: list[BaseException] = []
    count = torch.get_num_threads()

    def run(work: Callable[[], None]) -> None:
        try:
            # Each thread starts with torch's default, and sums depend on it to the last bit.
            torch.set_num_threads(count)
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_models_in_threads_of_their_own() -> None:
    pairs = [models(), models(placement="keep"), models("gpt2"), models("gemma2")]
    got: dict[int, Step] = {}

    def train(index: int, model: PreTrainedModel) -> Callable[[], None]:
        def work() -> None:
            for _ in range(4):
                got[index] = train_step(model, batch())

        return work

    works = [train(i, model) for i, model in enumerate(wrapped for _, wrapped in pairs)]
    in_threads(*works, train(-1, plain_model()))
    for index, (plain, _) in enumerate(pairs):
        assert_same_step(got[index], train_step(plain, batch()))
    assert_same_step(got[-1], train_step(pairs[0][0], batch()))


def test_the_same_model_in_a_second_thread_is_refused() -> None:
    wrapped = wrapped_model()
    expected = train_step(wrapped, batch())
    inside, leave = threading.Event(), threading.Event()
    got: list[Step] = []

    def wait(*_: Any) -> None:
        inside.set()
        assert leave.wait(WAIT_S)

    def first() -> None:
        got.append(train_step(wrapped, batch()))

    def second() -> None:
        assert inside.wait(WAIT_S)
        try:
            with pytest.raises(memo.MemoError, match="one thread at a time"):
                wrapped(**batch())
        finally:
            leave.set()

    with attached(_norm(wrapped).register_forward_hook(wait)):
        in_threads(first, second)
    assert_equal_grads(got[0].grads, expected.grads)
    assert_equal_grads(train_step(wrapped, batch()).grads, expected.grads)


def test_two_models_of_one_config_in_threads() -> None:
    # The first leaves its forward while the second is in the middle of its own.
    plain = plain_model()
    twins = [type(plain)(plain.config).train() for _ in range(2)]
    for twin in twins:
        twin.load_state_dict(plain.state_dict())
        memo.wrap(twin, tile_tokens=TILE_TOKENS)
    before = vars(plain.config).copy()
    inside = [threading.Event(), threading.Event()]
    first_is_out = threading.Event()
    got: dict[int, Step] = {}

    def wait(index: int, event: threading.Event) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            inside[index].set()
            assert event.wait(WAIT_S)

        return hook

    def first() -> None:
        with attached(_norm(twins[0]).register_forward_hook(wait(0, inside[1]))):
            got[0] = train_step(twins[0], batch())
        first_is_out.set()

    def second() -> None:
        assert inside[0].wait(WAIT_S)
        with attached(_norm(twins[1]).register_forward_hook(wait(1, first_is_out))):
            got[1] = train_step(twins[1], batch())

    in_threads(first, second)
    assert vars(plain.config) == before
    expected = train_step(plain, batch())
    for step in got.values():
        assert_same_step(step, expected)


def test_backward_in_another_thread() -> None:
    wrapped = wrapped_model()
    expected = train_step(wrapped, batch())
    loss = wrapped(**batch()).loss
    in_threads(loss.backward)
    assert_equal_grads(gradients(wrapped), expected.grads)


def _norm(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule("model.norm")
