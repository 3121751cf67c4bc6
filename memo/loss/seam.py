"""The loss's seam: for the time of one forward the head returns lazy logits and the loss function
is ours.

Scope: the attributes of the model that stand in the way of logits, and `transformers`' causal loss
told as a `LossSpec`. The real head is called once per loss, with its own forward replaced for that
call, so that an engine's hooks (gathering parameters) fire around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from memo.loss.lazy import LazyLogits, LogitsRecipe
from memo.loss.tiled import LossSpec, tiled_cross_entropy


@dataclass(frozen=True, slots=True)
class LossSeam:
    """`model` with its head at `model.<head_name>`; `on_materialise` is told when logits had to
    be made, and why.
    """

    model: nn.Module
    head_name: str
    on_materialise: Callable[[str], None]

    @classmethod
    def of(cls, model: nn.Module, on_materialise: Callable[[str], None]) -> LossSeam | None:
        """None when the model has no head of its own, or computes its loss in another way than
        causal LMs do.
        """
        head = model.get_output_embeddings()  # type: ignore[operator]
        names = [name for name, child in model.named_children() if child is head]
        if head is None or not names or not isinstance(getattr(head, "weight", None), Tensor):
            return None
        if "forward" in head.__dict__ or _foreign_hooks(head):
            return None
        if getattr(model, "loss_function", None) is not ForCausalLMLoss:
            return None
        return cls(model, names[0], on_materialise)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Run the model's forward inside."""
        attributes = self.model.__dict__
        head = getattr(self.model, self.head_name)
        before = attributes.get("_loss_function")
        attributes[self.head_name] = _LazyHead(head, self.on_materialise)
        attributes["_loss_function"] = partial(_loss, head)
        try:
            yield
        finally:
            del attributes[self.head_name], attributes["_loss_function"]
            if before is not None:
                attributes["_loss_function"] = before


@dataclass(frozen=True, slots=True)
class _LazyHead:
    """Stands where the head stands; a plain attribute wins over a registered module."""

    head: nn.Module
    on_materialise: Callable[[str], None]

    def __call__(self, hidden: Tensor) -> LazyLogits:
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        dtype = (
            torch.get_autocast_dtype(hidden.device.type) if _is_autocast(hidden) else weight.dtype
        )
        recipe = LogitsRecipe(self.head, (), self.on_materialise)
        # An engine that shards parameters leaves a weight without rows between calls.
        vocabulary = getattr(self.head, "out_features", weight.shape[0])
        return LazyLogits.of(hidden, recipe, vocabulary, dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.head, name)


def _foreign_hooks(head: nn.Module) -> bool:
    """Whether anybody but an engine (which gathers parameters) wants to see the head's output."""
    engines = ("torch.distributed", "deepspeed")
    hooks = (*head._forward_hooks.values(), *head._forward_pre_hooks.values())
    return any(not str(getattr(hook, "__module__", "")).startswith(engines) for hook in hooks)


def _is_autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def _loss(
    head: nn.Module,
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """`transformers`' `ForCausalLMLoss`, tiled when the logits are still lazy."""
    if not isinstance(logits, LazyLogits) or logits.shape[-1] != vocab_size:
        if isinstance(logits, LazyLogits):
            logits = logits.materialise("a head wider than the vocabulary")
        loss: Tensor = ForCausalLMLoss(
            logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs
        )
        return loss
    if shift_labels is None:
        assert labels is not None
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    spec = LossSpec(
        head, logits.recipe, ignore_index, num_items_in_batch, vocab_size, logits.head_dtype
    )
    return _as_forward_of(
        head, partial(tiled_cross_entropy, spec, labels=shift_labels), logits.hidden
    )


def _as_forward_of(head: nn.Module, compute: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Call `compute(hidden)` as the head's forward: an engine's hooks see one call of the head,
    and a scalar.
    """
    head.__dict__["forward"] = compute  # `LossSeam.of` saw to it that nobody else's stands there
    try:
        result: Tensor = head(hidden)
    finally:
        del head.__dict__["forward"]
    return result
