"""Logits that are not there yet: what a model does to them is recorded, and done tile by tile
later.

Scope: `LazyLogits`, a tensor that knows the hidden states and the head it would come from.
Elementwise operations (scaling, soft-capping, casts) are recorded; anything else makes the real
logits, once, and says so to `on_materialise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from offload import MemoError

Operation = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function, its arguments after the logits, and its keywords."""

_T = torch.Tensor
_IN_PLACE: dict[Any, Any] = {
    _T.__itruediv__: torch.div,
    _T.__imul__: torch.mul,
    _T.__iadd__: torch.add,
    _T.__isub__: torch.sub,
    _T.mul_: torch.mul,
    _T.div_: torch.div,
    _T.tanh_: torch.tanh,
}
"""Operations on the logits themselves, and what does the same to a tile."""


_ELEMENTWISE: frozenset[Any] = frozenset(
    {
        *(_T.clone, _T.detach),
        *(
            torch.tanh,
            torch.mul,
            torch.div,
            torch.true_divide,
            torch.add,
            torch.sub,
            torch.clamp,
            torch.neg,
        ),
        *(_T.tanh, _T.mul, _T.div, _T.true_divide, _T.add, _T.sub, _T.clamp, _T.neg, _T.__neg__),
        *(_T.__mul__, _T.__rmul__, _T.__truediv__, _T.__add__, _T.__radd__, _T.__sub__),
        *(_T.float, _T.to, _T.type, _T.half, _T.bfloat16, _T.double, _T.contiguous, _T.type_as),
    }
)
_QUERIES: frozenset[Any] = frozenset(
    {
        *(_T.size, _T.dim, _T.numel, _T.is_floating_point, _T.element_size, _T.get_device),
        *(
            getattr(_T, name).__get__
            for name in ("shape", "dtype", "device", "ndim", "requires_grad")
        ),
        *(
            getattr(_T, name).__get__
            for name in ("is_cuda", "layout", "is_sparse", "is_quantized", "is_leaf", "is_meta")
        ),
        *(getattr(_T, name).__get__ for name in ("grad_fn", "grad", "is_nested", "is_cpu")),
        torch.is_floating_point,
    }
)


@dataclass(frozen=True, slots=True)
class LogitsRecipe:
    """How to make logits of hidden states ([..., hidden] to [..., vocabulary])."""

    head: nn.Module
    operations: Sequence[Operation] = ()
    on_materialise: Callable[[str], None] = field(default=lambda _: None)

    def apply(self, hidden: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The logits; `head` replaces the recipe's own (with other parameters, say)."""
        logits = (head or self.head)(hidden)
        for function, args, kwargs in self.operations:
            logits = function(logits, *args, **kwargs)
        return logits

    def weight_versions(self) -> tuple[int, ...]:
        """Changed when the head's weights are."""
        return tuple(param._version for param in self.head.parameters())

    def then(self, operation: Operation) -> LogitsRecipe:
        return replace(self, operations=(*self.operations, operation))


class LazyLogits(torch.Tensor):
    """Logits of `hidden` ([batch, tokens, hidden]) by `recipe`, without their memory."""

    hidden: Tensor
    recipe: LogitsRecipe
    head_dtype: torch.dtype
    weight_versions: tuple[int, ...]
    made: Tensor | None

    @staticmethod
    def of(hidden: Tensor, recipe: LogitsRecipe, vocabulary: int, dtype: torch.dtype) -> LazyLogits:
        shape = (*hidden.shape[:-1], vocabulary)
        lazy: LazyLogits = torch.Tensor._make_wrapper_subclass(
            LazyLogits, shape, dtype=dtype, device=hidden.device, requires_grad=False
        )
        lazy.hidden, lazy.recipe, lazy.head_dtype = hidden, recipe, dtype
        lazy.weight_versions, lazy.made = recipe.weight_versions(), None
        return lazy

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LazyLogits(shape={tuple(self.shape)}, dtype={self.dtype})"

    def materialise(self, why: str) -> Tensor:
        """The real logits, with their graph; made once.

        Raises:
            MemoError: when the head's weights have changed since the forward.
        """
        if self.made is None:
            if self.recipe.weight_versions() != self.weight_versions:
                raise MemoError(
                    "logits were asked for after the head's weights had changed, and would be "
                    "those of the new weights; read outputs.logits before optimizer.step()"
                )
            self.recipe.on_materialise(why)
            self.made = self.recipe.apply(self.hidden)
        return self.made

    def _recorded(self, operation: Operation) -> LazyLogits:
        function, args, kwargs = operation
        dtype = function(torch.empty(0, dtype=self.dtype), *args, **kwargs).dtype
        recipe = self.recipe.then(operation)
        result = LazyLogits.of(self.hidden, recipe, self.shape[-1], dtype)
        result.head_dtype, result.weight_versions = self.head_dtype, self.weight_versions
        return result

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _QUERIES:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        lazy = args[0] if args else None
        if func is _T.view_as and args[1] is lazy:
            return lazy
        if func is _T.type and len(args) == 1 and not kwargs:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if isinstance(lazy, LazyLogits) and func in _IN_PLACE and _are_scalars(args[1:], kwargs):
            lazy.recipe = lazy.recipe.then((_IN_PLACE[func], args[1:], kwargs))
            return lazy
        if isinstance(lazy, LazyLogits) and func in _ELEMENTWISE and _are_scalars(args[1:], kwargs):
            return lazy._recorded((func, args[1:], kwargs))
        return _on_real(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _on_real(func, args, kwargs or {})


def _on_real(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", str(func))

    def real(value: LazyLogits) -> Tensor:
        return value.materialise(name)

    args, kwargs = pytree.tree_map_only(LazyLogits, real, (args, kwargs))
    return func(*args, **kwargs)


def _are_scalars(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    # A tensor of one element may scale all logits alike; a larger one is indexed by token or by
    # word.
    values = (*args, *kwargs.values())
    return all(
        not isinstance(value, Tensor) or (value.ndim == 0 and not value.requires_grad)
        for value in values
    )
