"""Calling a module's plain forward on other parameters.

Scope: one helper on `torch.func.functional_call`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class PlainForward(nn.Module):
    """Holds a module and calls its class's forward: calling the module itself would run its
    hooks, once per tile.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        params = [id(param) for param in _all_parameters(module)]
        self._is_tied = len(set(params)) < len(params)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def with_params(self, params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Run with `params` (by their names in the module) in place of the module's own."""
        swapped = {f"module.{name}": param for name, param in params.items()}
        # Looking for tied weights takes a tenth of what Python takes for a tile.
        return functional_call(self, swapped, args, kwargs, tie_weights=self._is_tied)


def _all_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """One that has two names twice."""
    return (param for _, param in module.named_parameters(remove_duplicate=False))
