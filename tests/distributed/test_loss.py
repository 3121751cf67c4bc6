"""The loss over ranks, against one process: values, gradients, and their scale under engines."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional

from memo.parallel.batch import shift_labels
from memo.parallel.contracts import SequenceGroup
from memo.parallel.loss import gather_tokens, token_weighted_mean
from memo.parallel.shares import share_tokens
from memo.parallel.view import SequenceView
from memo.parallel.wire import Wire
from tests.distributed.ranks import run_ranks

TOKENS, HIDDEN, WORDS = 29, 5, 11
IGNORED = -100


def _inputs(labelled: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, the head's weight, and labels, all of whose counting ones are in a range."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(WORDS, HIDDEN, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, WORDS, (2, TOKENS), generator=generator)
    labels[:, : labelled[0]] = labels[:, labelled[1] :] = IGNORED
    labels[0, ::3] = IGNORED
    return hidden, weight, labels


def _sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = (hidden @ weight.T).flatten(0, 1)
    return functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")


def _step(wire: Wire, labelled: tuple[int, int], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss, and the head's gradient as an engine would reduce it: the mean over ranks."""
    hidden, weight, labels = _inputs(labelled)
    weight.requires_grad_()
    view = SequenceView.of(wire.group, share_tokens(TOKENS, wire.group.size, 4), batch_size=2)
    own = view.cut(shift_labels(labels))
    loss = token_weighted_mean(
        _sum(view.cut(hidden), weight, own),
        (own != IGNORED).sum(),
        wire,
        gradient_scale=wire.group.size,
        **options,
    )
    loss.backward()
    assert weight.grad is not None
    dist.all_reduce(weight.grad)
    return loss.detach(), weight.grad / wire.group.size


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_mean_over_the_tokens_of_all_ranks(ranks: int, tmp_path: Path) -> None:
    all_options: tuple[dict[str, Any], ...] = ({}, {"divisor": 7}, {"divisor": torch.tensor(5)})
    asked = list(product([(0, TOKENS), (9, 14), (5, 6)], all_options))
    steps = run_ranks(_steps, ranks, tmp_path, asked)
    for index, (labelled, options) in enumerate(asked):
        _check([of_rank[index] for of_rank in steps], labelled, options)


def _steps(
    wire: Wire, asked: list[tuple[tuple[int, int], dict[str, Any]]]
) -> list[tuple[Tensor, Tensor]]:
    return [_step(wire, labelled, options) for labelled, options in asked]


def _check(
    results: list[tuple[Tensor, Tensor]], labelled: tuple[int, int], options: dict[str, Any]
) -> None:
    hidden, weight, labels = _inputs(labelled)
    weight.requires_grad_()
    shifted = shift_labels(labels)
    divisor = options.get("divisor", (shifted != IGNORED).sum())
    want = _sum(hidden, weight, shifted) / divisor
    want.backward()
    assert weight.grad is not None
    for loss, grad in results:
        assert torch.equal(loss, results[0][0])
        assert torch.allclose(loss, want, rtol=1e-12)
        assert torch.allclose(grad, weight.grad, rtol=1e-11, atol=1e-13)


def test_without_any_label_the_mean_is_nan_and_the_gradient_zero(tmp_path: Path) -> None:
    for loss, grad in run_ranks(_step, 2, tmp_path, (0, 0), {}):
        assert loss.isnan()
        assert not grad.any()


def _gather(wire: Wire, tokens: int) -> tuple[Tensor, Tensor]:
    whole = _rows(tokens)
    shares = share_tokens(tokens, wire.group.size)
    view = SequenceView.of(wire.group, shares, batch_size=3)
    own = view.cut(whole).clone().requires_grad_()
    gathered = gather_tokens(own, shares, wire, gradient_scale=2.0)
    (gathered.square().sum() / 2).backward()
    assert own.grad is not None
    return gathered.detach(), own.grad


def _rows(tokens: int) -> Tensor:
    return torch.arange(3.0 * tokens * 2).view(3, tokens, 2)


@pytest.mark.parametrize("tokens", [5, 13])
def test_outputs_per_token_are_gathered(tokens: int, tmp_path: Path) -> None:
    results = run_ranks(_gather, 8, tmp_path, tokens)
    for gathered, _ in results:
        assert torch.equal(gathered, _rows(tokens))
    grads = torch.cat([grad for _, grad in results], dim=1)
    assert torch.equal(grads, 2 * _rows(tokens))


def test_a_group_of_one_rank_is_the_mean_itself(tmp_path: Path) -> None:
    ((loss, _),) = run_ranks(_step, 1, tmp_path, (0, TOKENS), {})
    hidden, weight, labels = _inputs((0, TOKENS))
    shifted = shift_labels(labels)
    assert torch.allclose(loss, _sum(hidden, weight, shifted) / (shifted != IGNORED).sum())
    assert SequenceGroup(None, 0, 1).size == 1
