"""Rotary tables that depend on the sequence's length: every rank makes those of the whole.

Scope: transformers' "dynamic" and "longrope" tables, whose frequencies follow the largest position
of a call (`transformers.modeling_rope_utils.dynamic_rope_update`); a rank's own largest would give
each rank its own frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_GROWING = ("dynamic", "longrope")


def growing_tables(model: nn.Module) -> list[nn.Module]:
    """The modules that make such tables."""
    return [module for module in model.modules() if _grows(getattr(module, "rope_type", None))]


def _grows(rope_type: Any) -> bool:
    types = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
    return any(part in str(one) for one in types for part in _GROWING)


@contextmanager
def made_for(tables: Sequence[nn.Module], last: Tensor) -> Iterator[None]:
    """Inside, `tables` are those of a sequence whose largest position is `last` ([], int)."""
    with ExitStack() as stack:
        for module in tables:
            attributes, original = module.__dict__, module.forward
            before = attributes.get("forward")
            stack.callback(_restore, attributes, before)
            attributes["forward"] = partial(_with_last, original, last)
        yield


def _restore(attributes: dict[str, Any], before: Any) -> None:
    del attributes["forward"]
    if before is not None:
        attributes["forward"] = before


def _with_last(
    original: Any, last: Tensor, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """One position more, `last`, for which there is then no row ([..., tokens, size])."""
    more = last.to(position_ids).expand(*position_ids.shape[:-1], 1)
    made = original(x, torch.cat([position_ids, more], dim=-1), *args, **kwargs)
    return pytree.tree_map_only(Tensor, lambda table: table[..., :-1, :], made)
