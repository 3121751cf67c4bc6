"""Parameter gradients accumulated over tiles, returned once per layer.

Scope: leaf views that tiles run on, and the sums over tiles. A sum over many bf16 tiles must keep
what one untiled matmul keeps in its float32 accumulator, so half-precision gradients are summed in
float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from offload.contracts import GRADIENT_DTYPES


@dataclass(slots=True)
class ParameterGradients:
    """Leaf views of `params` by name, whose gradients are summed here and never reach the
    parameters' `.grad`.
    """

    params: Mapping[str, Tensor]
    leaves: dict[str, Tensor] = field(init=False)
    _wide: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.leaves = {name: self._leaf(name, param) for name, param in self.params.items()}

    def _leaf(self, name: str, param: Tensor) -> Tensor:
        leaf = param.detach().requires_grad_(param.requires_grad)
        if param.requires_grad and param.dtype in GRADIENT_DTYPES:
            # The hook is held by C++, where the garbage collector cannot see a way back: it knows
            # the sums, never the leaves.
            leaf.register_post_accumulate_grad_hook(partial(_widen, self._wide, name))
        return leaf

    def collect(self) -> tuple[Tensor | None, ...]:
        """The sums in the parameters' dtypes and order, None where no tile gave a gradient;
        forgets them.
        """
        return tuple(self._collect(name, leaf) for name, leaf in self.leaves.items())

    def collect_wide(self) -> tuple[Tensor | None, ...]:
        """As `collect`, but in the dtype of the sums."""
        return tuple(
            self._wide.pop(name) if name in self._wide else _take(leaf)
            for name, leaf in self.leaves.items()
        )

    def _collect(self, name: str, leaf: Tensor) -> Tensor | None:
        wide = self._wide.pop(name, None)
        if wide is not None:
            return wide.to(leaf.dtype)
        return _take(leaf)


def _widen(sums: dict[str, Tensor], name: str, leaf: Tensor) -> None:
    # Called as soon as one parameter's gradient of one tile is there, so that no two of them wait
    # in memory.
    grad, leaf.grad = leaf.grad, None
    assert grad is not None
    if name in sums:
        sums[name].add_(grad)
    else:
        sums[name] = grad.to(GRADIENT_DTYPES[leaf.dtype])


def _take(leaf: Tensor) -> Tensor | None:
    grad, leaf.grad = leaf.grad, None
    return grad
