"""A batch cut into ranks' tokens: every rank is given the whole, and takes its own.

Scope: the arguments of a Hugging Face model's forward. Labels are shifted before the cut, so that
the last token of a share learns from the first of the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from memo.parallel.view import SequenceView
from offload import MemoError

IGNORED = -100
"""The label that counts for nothing, in transformers and in torch."""

_TOKENS_LAST = ("input_ids", "position_ids", "attention_mask", "token_type_ids")
"""Integers per token, [..., tokens]."""

_TOKENS_SECOND = ("inputs_embeds",)
"""Vectors per token, [batch, tokens, hidden]."""


def total_tokens(arguments: Mapping[str, Any]) -> int:
    """How many tokens a batch's rows have.

    Raises:
        ValueError: without `input_ids` and `inputs_embeds`.
    """
    for name in ("input_ids", "inputs_embeds"):
        value = arguments.get(name)
        if isinstance(value, Tensor):
            return value.shape[1]
    raise ValueError("arguments have neither input_ids nor inputs_embeds: takes one of them")


def shift_labels(labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Labels ([batch, tokens]) where the token before them stands, as transformers'
    `ForCausalLMLoss` shifts them; nothing is to be learnt at the last token.
    """
    return functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def split_batch(
    arguments: Mapping[str, Any], view: SequenceView, *, ignore_index: int = IGNORED
) -> dict[str, Any]:
    """A rank's arguments: tensors per token are cut, all else stays.

    Positions are always in the result: a model would count a share's from 0. With `labels`,
    `shift_labels` are too. A padding mask is cut, though `view` knows all that attention needs of
    it.

    Raises:
        ValueError: for tensors of another length than the view's.
        MemoError: for another tensor of more than one element, and for tensors within a list or
            a dictionary.
    """
    tokens = view.shares.total_tokens
    found = total_tokens(arguments)
    if found != tokens:
        raise ValueError(f"the batch has {found} tokens: takes {tokens}, as the view's shares")
    result = dict(arguments)
    if arguments.get("position_ids") is None:
        result["position_ids"] = _positions(arguments, tokens)
    labels = arguments.get("labels")
    if labels is not None and arguments.get("shift_labels") is None:
        result["shift_labels"] = shift_labels(labels, ignore_index)
    return {name: _cut(name, value, view) for name, value in result.items()}


def _positions(arguments: Mapping[str, Any], tokens: int) -> Tensor:
    like = next(
        value
        for name in ("input_ids", "inputs_embeds")
        if isinstance(value := arguments.get(name), Tensor)
    )
    return torch.arange(tokens, device=like.device).unsqueeze(0)


def _cut(name: str, value: Any, view: SequenceView) -> Any:
    if not isinstance(value, Tensor):
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
            raise MemoError(f"{name} is a {type(value).__name__} of tensors: takes tensors alone")
        return value
    tokens = view.shares.total_tokens
    if name in (*_TOKENS_LAST, "labels", "shift_labels"):
        dim = value.ndim - 1
    elif name in _TOKENS_SECOND:
        dim = 1
    elif value.numel() > 1:
        raise MemoError(
            f"{name} of shape {tuple(value.shape)}: memo does not know whose tokens it is of, and "
            "how to cut it among ranks"
        )
    else:
        return value
    if value.shape[dim] != tokens:
        raise ValueError(f"{name} has {value.shape[dim]} tokens: takes {tokens}")
    return view.cut(value, dim)
