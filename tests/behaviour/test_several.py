"""Several models in one process, copies, and threads: none disturbs another, and the same model in
two threads is refused.
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import memo
from tests.behaviour.common import (
    PLACEMENTS,
    TILE_TOKENS,
    attached,
    batch,
    gradients,
    held_bytes,
    models,
    plain_model,
    wrapped_model,
)
from tests.behaviour.state import assert_restored, state_of
from tests.families.harness import (
    Step,
    assert_equal_grads,
    assert_same_grads,
    assert_same_step,
    train_step,
)

WAIT_S = 30.0
"""For another thread; only a deadlock takes so long."""


def in_threads(*works: Callable[[], None]) -> None:
    """Run all at once, and raise what any of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
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


def test_two_wrapped_models_in_one_graph() -> None:
    plain_a, a = models()
    plain_b, b = models("gemma2")
    (a(**batch()).loss + b(**batch()).loss).backward()
    for plain, wrapped in ((plain_a, a), (plain_b, b)):
        assert_same_grads(gradients(wrapped), train_step(plain, batch()).grads)
    assert memo.report(a).kinds[0].calls == 2
    assert {kind.calls for kind in memo.report(b).kinds} == {1}


def test_one_wrapped_and_one_not() -> None:
    plain, wrapped = models()
    state, expected = state_of(plain), train_step(plain, batch())
    loss = wrapped(**batch()).loss
    between = train_step(plain, batch())
    loss.backward()
    assert float(between.loss) == float(expected.loss)
    assert_equal_grads(between.grads, expected.grads)
    assert_restored(plain, state)


def test_a_teacher_within_the_students_forward() -> None:
    # The teacher shares the student's class and its config object.
    plain, student = models()
    teacher = type(plain)(student.config).train()
    teacher.load_state_dict(plain.state_dict())
    assert teacher.config is student.config
    losses = []

    def ask(*_: Any) -> None:
        losses.append(teacher(**batch()).loss)

    with attached(_norm(student).register_forward_hook(ask)):
        got = train_step(student, batch())
    expected = train_step(plain, batch())
    assert_same_step(got, expected)
    assert_same_step(Step(losses[0].detach(), got.grads), expected)


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


def _norm(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule("model.norm")


def test_backward_in_another_thread() -> None:
    wrapped = wrapped_model()
    expected = train_step(wrapped, batch())
    loss = wrapped(**batch()).loss
    in_threads(loss.backward)
    assert_equal_grads(gradients(wrapped), expected.grads)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_a_deep_copy_trains_on_its_own(placement: Any) -> None:
    plain, wrapped = models(placement=placement)
    expected = train_step(plain, batch())
    calls = memo.report(wrapped).kinds[0].calls
    twin = copy.deepcopy(wrapped)
    with torch.no_grad():
        for param in wrapped.parameters():
            param.zero_()
    assert_same_step(train_step(twin, batch()), expected)
    assert all(param.grad is None for param in wrapped.parameters())
    assert memo.report(wrapped).kinds[0].calls == calls
    assert memo.report(twin).kinds[0].calls == calls + 2
    assert_same_step(train_step(memo.unwrap(twin), batch()), expected)
    assert memo.report(wrapped).kinds
    assert held_bytes(wrapped) == 0


def test_a_copy_of_an_unwrapped_model_is_not_wrapped() -> None:
    twin = copy.deepcopy(memo.unwrap(wrapped_model()))
    with pytest.raises(memo.MemoError, match="not wrapped"):
        memo.report(twin)


def test_a_pickled_model_comes_back_wrapped() -> None:
    plain, wrapped = models()
    file = io.BytesIO()
    torch.save(wrapped, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert_same_step(train_step(loaded, batch()), train_step(plain, batch()))
    assert memo.report(loaded).kinds[0].calls == 2
    memo.unwrap(loaded)
    assert memo.report(wrapped).kinds[0].calls == 0


def test_wrapped_again_with_other_options() -> None:
    plain, wrapped = models()
    for options in ({"tile_tokens": 3}, {"tile_tokens": 64, "placement": "host"}):
        memo.wrap(memo.unwrap(wrapped), **options)
        assert_same_step(train_step(wrapped, batch()), train_step(plain, batch()))
        assert memo.report(wrapped).tile_tokens == options["tile_tokens"]
    memo.wrap(memo.unwrap(wrapped), tile_tokens=TILE_TOKENS)
