"""`memo.wrap(sequence_parallel=...)`: every rank gets what one process would, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import memo
from tests.distributed.calls import (
    TOKENS,
    Asked,
    after_unwrap,
    alone,
    classifier_error,
    error_of,
    error_of_logits,
    error_on_one,
    foreign_forward,
    loss_of_its_own,
    losses_by_group,
    output_of,
    step_of,
    wrap_error_on_one,
)
from tests.distributed.ranks import run_ranks
from tests.families.catalogue import family_named
from tests.families.harness import assert_same_step, build, train_step


def _plain_output(asked: Asked) -> Any:
    with torch.no_grad():
        return build(family_named(asked.family)).train(asked.training)(**asked.batch())


def _assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("training", [True, False])
def test_outputs_per_token_are_whole(training: bool, tmp_path: Path) -> None:
    asked = Asked(
        labels=training,
        training=training,
        arguments={"output_hidden_states": True, "use_cache": False},
        options={"tiled_loss": False},
    )
    expected = _plain_output(asked)
    for output in run_ranks(output_of, 4, tmp_path, asked):
        assert (output.loss is None) == (expected.loss is None)
        if training:
            _assert_close(output.loss, expected.loss)
        _assert_close(output.logits, expected.logits)
        assert len(output.hidden_states) == len(expected.hidden_states)
        for mine, whole in zip(output.hidden_states, expected.hidden_states, strict=True):
            _assert_close(mine, whole)


def test_a_tuple_is_returned_where_one_is_asked_for(tmp_path: Path) -> None:
    as_tuple = {"return_dict": False, "use_cache": False}
    asked = Asked(arguments=as_tuple, options={"tiled_loss": False})
    expected = _plain_output(asked)
    for output in run_ranks(output_of, 2, tmp_path, asked):
        assert isinstance(output, tuple)
        assert len(output) == len(expected)
        for mine, whole in zip(output, expected, strict=True):
            _assert_close(mine, whole)


def test_evaluation_with_labels(tmp_path: Path) -> None:
    asked = Asked(training=False, options={"tiled_loss": False})
    expected = _plain_output(asked)
    for output in run_ranks(output_of, 8, tmp_path, asked):
        _assert_close(output.loss, expected.loss)


def _square(output: Any) -> Tensor:
    loss: Tensor = output.logits.square().mean() + output.hidden_states[1].sin().mean()
    return loss


def test_a_loss_of_the_users_own_is_of_whole_outputs(tmp_path: Path) -> None:
    asked = Asked(labels=False, arguments={"output_hidden_states": True})
    expected = train_step(build(family_named("llama")), asked.batch(), _square)
    for step in run_ranks(step_of, 4, tmp_path, asked, _square):
        assert_same_step(step, expected)


def test_logits_that_were_not_made_are_refused_when_they_are_read(tmp_path: Path) -> None:
    for error, shape in run_ranks(error_of_logits, 2, tmp_path, Asked()):
        assert "logits were asked for (argmax) under sequence parallelism" in error
        assert shape == (2, TOKENS, family_named("llama").config().vocab_size)


@pytest.mark.parametrize("how", ["number", "mesh", "across"])
def test_groups(how: str, tmp_path: Path) -> None:
    expected = [alone(0), alone(1)]
    for rank, losses in enumerate(run_ranks(losses_by_group, 4, tmp_path, how)):
        group = rank % 2 if how == "across" else rank // 2
        assert losses == pytest.approx([expected[group]] * 3, rel=1e-5)


MASK_4D = torch.ones(2, 1, TOKENS, TOKENS)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(family="jamba"), "MemoError: layers of class JambaMambaDecoderLayer cannot share"),
        (Asked(family="qwen3_next"), "MemoError: layers of class Qwen3NextDecoderLayer"),
        (Asked(family="lfm2"), "MemoError: layers of class Lfm2DecoderLayer"),
        (Asked(family="mamba"), "MemoError: layers of class MambaBlock"),
        (Asked(family="bloom"), "MemoError: layers of class BloomBlock cannot share a sequence"),
        (Asked(options={"sequence_parallel": 3}), "ValueError: sequence_parallel=3: takes a div"),
        (Asked(options={"sequence_parallel": 0}), "ValueError: sequence_parallel=0: takes a num"),
        (Asked(options={"sequence_parallel": True}), "ValueError: sequence_parallel=True: takes"),
        (Asked(arguments={"logits_to_keep": 3}), "MemoError: logits_to_keep=3 counts tokens of"),
        (Asked(arguments={"attention_mask": MASK_4D}), "MemoError: attention_mask of shape"),
        (Asked(arguments={"pixel_values": torch.ones(2, 3)}), "MemoError: pixel_values of shape"),
        (Asked(arguments={"other": {"x": torch.ones(2)}}), "MemoError: other is a dict of tensors"),
        (Asked(arguments={"output_attentions": True}), "MemoError: output_attentions=True needs"),
    ],
)
def test_what_cannot_be_shared_is_refused_on_every_rank(
    asked: Asked, message: str, tmp_path: Path
) -> None:
    for error in run_ranks(error_of, 2, tmp_path, asked):
        assert error.startswith(message), error


def test_fewer_tokens_than_ranks(tmp_path: Path) -> None:
    ids = torch.ones(1, 3, dtype=torch.int64)
    asked = Asked(arguments={"input_ids": ids, "labels": ids})
    for error in run_ranks(error_of, 4, tmp_path, asked):
        assert "3 tokens for sequence_parallel=4" in error


def test_positions_counted_from_padding_are_asked_for(tmp_path: Path) -> None:
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[0, :4] = 0
    left = Asked(family="opt", arguments={"attention_mask": mask})
    for error in run_ranks(error_of, 2, tmp_path, left):
        assert "OPTForCausalLM counts positions from the padding mask" in error
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    given = Asked(family="opt", arguments={"attention_mask": mask, "position_ids": positions})
    assert run_ranks(error_of, 2, tmp_path, given) == ["", ""]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("input_ids", "given different batches: input_ids is not the same on all 2 ranks"),
        ("tile_tokens", "disagree on tile_tokens: 5, 7"),
        ("training", "disagree on training: True, False"),
    ],
)
def test_ranks_that_differ_are_told_on_every_rank(kind: str, message: str, tmp_path: Path) -> None:
    for error in run_ranks(error_on_one, 2, tmp_path, kind):
        assert message in error


def test_what_one_rank_refuses_all_do(tmp_path: Path) -> None:
    own = "found to be different"
    assert run_ranks(wrap_error_on_one, 3, tmp_path) == [
        f"on rank 1 of the sequence group: {own}" if rank != 1 else own for rank in range(3)
    ]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (foreign_forward, "would run whole (somebody else's forward stands on the layer)"),
        (loss_of_its_own, "computes its loss in a way of its own (0 calls of its loss_function)"),
        (classifier_error, "the loss of LlamaForTokenClassification is ForTokenClassification"),
    ],
)
def test_what_would_be_one_ranks_is_refused(job: Any, message: str, tmp_path: Path) -> None:
    for error in run_ranks(job, 2, tmp_path):
        assert message in error


def test_generation_and_unwrap_are_as_ever(tmp_path: Path) -> None:
    assert run_ranks(after_unwrap, 2, tmp_path) == [(True, True)] * 2


def test_without_other_processes() -> None:
    model = build(family_named("llama"))
    with pytest.raises(memo.MemoError, match="sequence_parallel=2 needs that many processes"):
        memo.wrap(model, sequence_parallel=2)
    memo.unwrap(memo.wrap(model, sequence_parallel=1))
