"""Calls that a wrapped model refuses, and calls at the edge that it takes: masks above all.

Scope: what is refused leaves a model that trains on. Padding and packing are tested by family.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import memo
from tests.behaviour.common import batch, held_bytes, models, wrapped_model
from tests.families.harness import assert_equal_grads, assert_same_step, random_ids, train_step

S = 23


def middle_padding() -> torch.Tensor:
    """A hole between real tokens of the first row."""
    mask = torch.ones(2, S, dtype=torch.long)
    mask[0, 5] = 0
    return mask


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "attentions": ({"output_attentions": True}, "output_attentions=True needs the matrix"),
    "4-D mask": (
        {"attention_mask": torch.ones(2, 1, S, S)},
        r"attention_mask of shape \(2, 1, 23, 23\): memo takes 2-D padding masks",
    ),
    "3-D mask": ({"attention_mask": torch.ones(2, S, S)}, r"attention_mask of shape \(2, 23, 23\)"),
    "padding in the middle": ({"attention_mask": middle_padding()}, "padding between real tokens"),
    "cu_seq_lens": (
        {
            "cu_seq_lens_q": torch.tensor([0, S], dtype=torch.int32),
            "cu_seq_lens_k": torch.tensor([0, S], dtype=torch.int32),
        },
        "pass packed documents as position_ids that restart",
    ),
    "a keyword of attention": (
        {"position_bias": torch.zeros(2, 4, S, S)},
        r"passes attention keywords unknown to memo: \['position_bias'\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("placement", ["recompute", "keep"])
def test_refused_and_whole_afterwards(case: str, placement: str) -> None:
    more, words = REFUSED[case]
    wrapped = wrapped_model(placement=placement)
    expected = train_step(wrapped, batch())
    with pytest.raises(memo.MemoError, match=words):
        wrapped(**batch(), **more)
    assert held_bytes(wrapped) == 0
    assert_equal_grads(train_step(wrapped, batch()).grads, expected.grads)


def test_attentions_asked_for_by_the_config() -> None:
    wrapped = wrapped_model()
    wrapped.config._attn_implementation = "eager"  # transformers allows the wish beside it alone
    wrapped.config.output_attentions = True
    with pytest.raises(memo.MemoError, match="output_attentions"):
        wrapped(**batch())
    wrapped.config.output_attentions = False
    train_step(wrapped, batch())


def test_what_is_refused_in_training_is_there_after_unwrap() -> None:
    plain, wrapped = models()
    mask = torch.full((2, 1, S, S), float("-inf")).triu(1)
    with pytest.raises(memo.MemoError, match="2-D"):
        wrapped(**batch(), attention_mask=mask)
    more = batch() | {"attention_mask": mask}
    assert_same_step(train_step(memo.unwrap(wrapped), more), train_step(plain, more))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_dtype(dtype: torch.dtype) -> None:
    plain, wrapped = models()
    mask = torch.ones(2, S, dtype=dtype)
    mask[1, 15:] = 0
    inputs = batch() | {"attention_mask": mask}
    inputs["labels"] = inputs["labels"].masked_fill(mask == 0, -100)
    assert_same_step(train_step(wrapped, inputs), train_step(plain, inputs))


def test_a_row_of_padding_alone() -> None:
    plain, wrapped = models()
    mask = torch.ones(2, S, dtype=torch.long)
    mask[1] = 0
    inputs = batch() | {"attention_mask": mask}
    inputs["labels"] = inputs["labels"].masked_fill(mask == 0, -100)
    assert_same_step(train_step(wrapped, inputs), train_step(plain, inputs))


def test_positions_that_start_elsewhere_are_no_documents() -> None:
    plain, wrapped = models()
    inputs = batch() | {"position_ids": torch.arange(S)[None] + 5}
    assert_same_step(train_step(wrapped, inputs), train_step(plain, inputs))


def test_arguments_by_position() -> None:
    plain, wrapped = models()
    mask = torch.ones(2, S, dtype=torch.long)
    got = wrapped(batch()["input_ids"], mask, labels=batch()["labels"]).loss
    assert abs(float(got.detach()) - float(plain(**batch()).loss.detach())) < 1e-5


def test_training_makes_no_cache_and_a_given_cache_runs_unwrapped() -> None:
    plain, wrapped = models()
    assert wrapped(**batch()).past_key_values is None
    with pytest.warns(memo.MemoWarning, match="memo has no cache"):
        assert wrapped(**batch(), use_cache=True).past_key_values is None
    with torch.no_grad():
        cache = plain.eval()(input_ids=random_ids(2, 4), use_cache=True).past_key_values
    # transformers 5.24 calls it by another name, and says so of the old one.
    names = inspect.signature(type(wrapped).forward).parameters
    name = "cache" if "cache" in names else "past_key_values"
    with pytest.warns(memo.MemoWarning, match="past_key_values ran unwrapped"):
        output = wrapped(**batch(), **{name: cache})
    assert output.past_key_values.get_seq_length() == S + 4
