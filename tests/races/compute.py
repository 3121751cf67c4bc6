"""Compute as the double sees it: every operation of torch, with what it reads and writes.

Scope: a dispatch mode that tells `DoubleStreams`. Without it compute has no clock of its own work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.races.double import DoubleStreams

_ALLOCATES = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
_SYNCS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What the host must know to go on: on a GPU it waits for compute there."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Of an operation. `written`: the arguments that it writes to, by place and name."""

    is_view: bool
    allocates: bool
    syncs: bool
    written: tuple[tuple[int, str], ...]


@cache
def _kind(func: torch._ops.OpOverload[..., Any]) -> _Kind:
    arguments = enumerate(func._schema.arguments)
    return _Kind(
        is_view=func.is_view or torch.Tag.inplace_view in func.tags,
        allocates=func._opname in _ALLOCATES,
        syncs=any(tag in _SYNCS for tag in func.tags),
        written=tuple((n, a.name) for n, a in arguments if a.alias_info and a.alias_info.is_write),
    )


class Compute(TorchDispatchMode):
    """Inside, torch's operations are work of the double's current stream."""

    def __init__(self, streams: DoubleStreams) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._streams = streams

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        assert isinstance(func, torch._ops.OpOverload)
        kwargs, kind = kwargs or {}, _kind(func)
        if kind.is_view:
            return func(*args, **kwargs)
        if kind.allocates:
            return self._allocate(func(*args, **kwargs))
        return self._work(func, args, kwargs)

    def _allocate(self, made: Any) -> Any:
        for tensor in _tensors(made):
            self._streams.region(tensor)  # from now on it is known, and whose it is
        return made

    def _work(
        self, func: torch._ops.OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        self._streams.operation_syncs += _kind(func).syncs
        given = list(_tensors((*args, *kwargs.values())))
        self._streams.compute_works(given, _written(func, args, kwargs))
        made = func(*args, **kwargs)
        known = {tensor.untyped_storage()._cdata for tensor in given}
        fresh = [t for t in _tensors(made) if t.untyped_storage()._cdata not in known]
        self._streams.compute_wrote(fresh)
        return made


def _written(
    func: torch._ops.OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[Tensor]:
    for index, name in _kind(func).written:
        yield from _tensors(args[index] if index < len(args) else kwargs.get(name))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those that have elements in memory."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Tensor) and _is_here(value):
        yield value


def _is_here(tensor: Tensor) -> bool:
    is_plain = tensor.layout is torch.strided and tensor.numel() > 0
    return is_plain and tensor.untyped_storage().device.type == "cpu"
