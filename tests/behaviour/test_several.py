"""Several models in one process, and copies of them: none disturbs another.

Scope: one thread; `test_threads.py` has more.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

import memo
from tests.behaviour.common import (
    PLACEMENTS,
    TILE_TOKENS,
    attached,
    batch,
    gradients,
    held_bytes,
    models,
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

    with attached(student.get_submodule("model.norm").register_forward_hook(ask)):
        got = train_step(student, batch())
    expected = train_step(plain, batch())
    assert_same_step(got, expected)
    assert_same_step(Step(losses[0].detach(), got.grads), expected)


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
