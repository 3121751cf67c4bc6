"""AdamW on float32 master weights, for models whose own weights are bf16.

A bf16 weight has 8 bits: an update below 1/256 of it is lost, which small learning rates make the
rule. So the optimizer keeps the weights in float32, updates those, and rounds them into the model.
Schedules, weight decay and sharding are not here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW:
    """AdamW that takes bf16 gradients, keeps float32 weights, and writes bf16 weights back.

    Parameters that are float32 themselves are updated in place, without a copy. Gradients are
    clipped to a total norm of `max_grad_norm`, computed in float32; 0 means no clipping.
    """

    def __init__(self, model: nn.Module, *, lr: float, max_grad_norm: float) -> None:
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._masters = {name: _master(weight) for name, weight in self._weights.items()}
        self._max_grad_norm = max_grad_norm
        # One AdamW for each weight: then a step never holds more than one float32 gradient.
        self._adamws = {
            name: torch.optim.AdamW(
                [master], lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
            )
            for name, master in self._masters.items()
        }

    def step(self) -> float:
        """Update masters and weights from the weights' gradients, drop those, return their norm.

        The norm is the one before clipping. Where it is no finite number, nothing is updated.
        """
        norm = self._gradient_norm()
        if math.isfinite(norm):
            clip = 0 < self._max_grad_norm < norm
            scale = self._max_grad_norm / norm if clip else 1.0
            for name, weight in self._weights.items():
                if weight.grad is not None:
                    self._update(name, weight, weight.grad, scale)
        for weight in self._weights.values():
            weight.grad = None
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the float32 weights by name, and AdamW's state of each."""
        masters = {name: master.detach() for name, master in self._masters.items()}
        states = {name: adamw.state_dict() for name, adamw in self._adamws.items()}
        return {"masters": masters, "adamw": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, the model's weights included.

        Raises: KeyError or RuntimeError if the state is of another model. The learning rate stays
        the one that this optimizer was made with.
        """
        masters: dict[str, Tensor] = state["masters"]
        if masters.keys() != self._masters.keys():
            raise KeyError("the parameters' names differ")
        for name, adamw in self._adamws.items():
            lr = adamw.param_groups[0]["lr"]
            adamw.load_state_dict(state["adamw"][name])
            adamw.param_groups[0]["lr"] = lr
            with torch.no_grad():
                self._masters[name].copy_(masters[name])
                self._write_back(name)

    def _gradient_norm(self) -> float:
        gradients = (weight.grad for weight in self._weights.values())
        norms = [
            torch.linalg.vector_norm(gradient, dtype=torch.float32)
            for gradient in gradients
            if gradient is not None
        ]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    @torch.no_grad()
    def _update(self, name: str, weight: nn.Parameter, gradient: Tensor, scale: float) -> None:
        weight.grad = None
        master = self._masters[name]
        master.grad = gradient.float() if scale == 1.0 else gradient.float().mul_(scale)
        self._adamws[name].step()
        master.grad = None
        self._write_back(name)

    def _write_back(self, name: str) -> None:
        if self._masters[name] is not self._weights[name]:
            self._weights[name].copy_(self._masters[name])


def _master(weight: nn.Parameter) -> nn.Parameter:
    if weight.dtype == torch.float32:
        return weight
    return nn.Parameter(weight.detach().float())
