"""What the runtime and transformers decide by looking at values, decided beforehand: fake tensors
have none.

Scope: stand-ins that are in place while a step is traced, and taken away after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from memo.attention import blockwise, masks
from memo.loss import tiled
from memo.loss.tiled import LossSpec
from offload import Replay, Tile, layer


class TracingMode(FakeTensorMode):
    """Fake tensors whose operations are remembered, but for those on a storage: what is remembered
    would hold it. Grouped matmuls are of any dtype: torch's rule for fake tensors takes bfloat16
    only, though its CPU kernel does not.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _GROUPED_MM and args[0].dtype is not torch.bfloat16:
            with self:
                return _grouped_mm(*args, **kwargs)
        before = self.cache_enabled
        self.cache_enabled = before and func.overloadpacket is not torch.ops.aten.set_
        try:
            return super().dispatch(func, types, args, kwargs)
        finally:
            self.cache_enabled = before


_GROUPED_MM = torch.ops.aten._grouped_mm.default


def _grouped_mm(a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Rows or columns in groups that end at `offs`: [rows, columns] if one side has a group dim,
    [groups, rows, columns] if none or both have.
    """
    groups = () if (a.ndim == 2) != (b.ndim == 2) else (len(a) if offs is None else len(offs),)
    return a.new_empty((*groups, a.shape[-2], b.shape[-1]))


LossTiles = Callable[[LossSpec, Tensor], Iterator[slice]]


@dataclass(slots=True)
class NoReplay(Replay):
    """Draws nothing and restores nothing: a trace has no values for random numbers to change."""

    def __post_init__(self) -> None:
        """The device's generators are left alone."""

    def first(self, tile: Tile) -> Any:
        return nullcontext()

    def advance(self) -> None:
        """Nothing was drawn."""

    def restored(self) -> Any:
        return nullcontext()


@contextmanager
def settled(loss_tiles: LossTiles) -> Iterator[None]:
    """While a step is traced: no documents are looked for in fake position ids, dropout's seed is
    none that was drawn, and the loss's tiles are those given.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(masks, "_document_starts", _document_starts))
        stack.enter_context(patch.object(blockwise, "_fresh_seed", lambda: 0))
        stack.enter_context(patch.object(tiled, "_tiles", loss_tiles))
        stack.enter_context(patch.object(layer, "_fresh", _fresh))
        yield


def _fresh(outputs: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    # Fake tensors have no addresses to compare.
    return {name: t.clone() if _lie_alike(t, x) else t for name, t in outputs.items()}


def _lie_alike(a: Tensor, b: Tensor) -> bool:
    same = a.untyped_storage()._cdata == b.untyped_storage()._cdata
    return same and a.storage_offset() == b.storage_offset()


_look = masks._document_starts


def _document_starts(documents: Tensor | None) -> list[list[int]] | None:
    # transformers takes every traced batch for packed, since it cannot look.
    return None if isinstance(documents, FakeTensor) else _look(documents)
