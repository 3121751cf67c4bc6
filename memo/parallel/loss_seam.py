"""The model's loss over ranks: its own loss function is given a rank's labels, and what it returns
is made that of the whole sequence.

Scope: the model's `loss_function` for the time of one forward. The function may already be memo's
tiled one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from memo.parallel.batch import IGNORED
from memo.parallel.loss import token_weighted_mean
from memo.parallel.view import SequenceView
from memo.parallel.wire import Wire
from offload import MemoError


@dataclass(slots=True)
class ParallelLoss:
    """`labels` are those of the whole sequence, shifted, [batch, tokens]; `divisor` is
    transformers' `num_items_in_batch` (None: how many labels count). `calls` counts losses.
    """

    wire: Wire
    view: SequenceView
    labels: Tensor
    divisor: Tensor | float | None = None
    calls: int = 0

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """Run the model's forward inside."""
        attributes, inner = model.__dict__, cast(Callable[..., Tensor], model.loss_function)
        before = attributes.get("_loss_function")
        attributes["_loss_function"] = partial(self._of_whole, inner)
        try:
            yield
        finally:
            del attributes["_loss_function"]
            if before is not None:
                attributes["_loss_function"] = before

    def _of_whole(
        self,
        inner: Callable[..., Tensor],
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | None = None,
        ignore_index: int = IGNORED,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        self.calls += 1
        count = (self.labels != ignore_index).sum().to(logits.device)
        divisor = count if self.divisor is None else _number(self.divisor, logits.device)
        # Divided here, so that gradients of a million tokens' sum need not fit in half precision.
        own = inner(
            logits=logits,
            labels=None,
            vocab_size=vocab_size,
            num_items_in_batch=divisor.where(divisor != 0, 1),
            ignore_index=ignore_index,
            shift_labels=self.view.cut(self.labels).contiguous(),
            **kwargs,
        )
        return token_weighted_mean(
            own,
            count,
            self.wire,
            divisor=(divisor != 0).double(),
            gradient_scale=float(self.wire.group.size),
        )

    def check_used(self, model: nn.Module, loss: Tensor | None) -> None:
        """Raises `MemoError` when the model's loss is not made of one call of the function."""
        if self.calls != (loss is not None):
            raise MemoError(
                f"{type(model).__name__} computes its loss in a way of its own ({self.calls} calls "
                "of its loss_function): under sequence parallelism it would be that of one rank's "
                "tokens; call the model without labels, and compute the loss from its outputs, "
                "which are whole"
            )


def check_causal(model: nn.Module) -> None:
    """Raises `MemoError` for a model whose loss is another than transformers' causal one."""
    function = getattr(model, "loss_function", None)
    if function is not ForCausalLMLoss:
        name = getattr(function, "__name__", repr(function))
        raise MemoError(
            f"the loss of {type(model).__name__} is {name}: under sequence parallelism memo knows "
            "that of causal language models; call the model without labels, and compute the loss "
            "from its outputs, which are whole"
        )


def _number(value: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True).reshape(())
    return torch.full((), value, device=device)
