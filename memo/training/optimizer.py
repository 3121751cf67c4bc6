"""AdamW on float32 master weights, for models whose own weights are bf16.

A bf16 weight has 8 bits: an update below 1/256 of it is lost, which small learning rates make the
rule. So the optimizer keeps the weights in float32, updates those, and rounds them into the model.
Schedules, weight decay and sharding are not here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW:
    """AdamW that takes bf16 gradients, keeps float32 weights, and writes bf16 weights back.

    Parameters that are float32 themselves are updated in place, without a copy. Gradients are
    clipped to a total norm of `max_grad_norm` in float32.
    """

    def __init__(self, model: nn.Module, *, lr: float, max_grad_norm: float) -> None:
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._masters = {name: _master(weight) for name, weight in self._weights.items()}
        self._max_grad_norm = max_grad_norm
        self._adamw = torch.optim.AdamW(
            self._masters.values(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self) -> None:
        """Update masters and weights from the weights' gradients, and drop the gradients."""
        for name, weight in self._weights.items():
            master = self._masters[name]
            if master is not weight:
                master.grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None  # one by one, so that both kinds never stand whole
        nn.utils.clip_grad_norm_(self._masters.values(), self._max_grad_norm)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._write_back()

    def state_dict(self) -> dict[str, Any]:
        """Return the float32 weights by name, and AdamW's state."""
        masters = {name: master.detach() for name, master in self._masters.items()}
        return {"masters": masters, "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, the model's weights included.

        Raises: KeyError or RuntimeError if the state is of another model. The learning rate stays
        the one that this optimizer was made with.
        """
        masters: dict[str, Tensor] = state["masters"]
        if masters.keys() != self._masters.keys():
            raise KeyError("the parameters' names differ")
        rates = [group["lr"] for group in self._adamw.param_groups]
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(masters[name])
        self._adamw.load_state_dict(state["adamw"])
        for group, lr in zip(self._adamw.param_groups, rates, strict=True):
            group["lr"] = lr
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        for name, weight in self._weights.items():
            if self._masters[name] is not weight:
                weight.copy_(self._masters[name])


def _master(weight: nn.Parameter) -> nn.Parameter:
    if weight.dtype == torch.float32:
        return weight
    return nn.Parameter(weight.detach().float())
