"""Layers that count their tokens' positions themselves, told where a tile begins.

Scope: which layers do, and the object that tells them. transformers' layers know of tokens before
theirs by a cache; in a tile's call something else stands in its place, with nothing in it.

Llama 4's layers without rotary embeddings do (arXiv 2501.19399): they scale queries by a function
of the position, which is 1 for the first `floor_scale` tokens (8,192).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

CACHES = ("cache", "past_key_values")
"""What a layer's cache is called: since transformers 5.24, and before."""

_SOON = 5
"""Tokens after which the scale of a layer that is checked changes: fewer than of a tile."""


@dataclass(frozen=True, slots=True)
class TokensBefore:
    """Says how many tokens precede a call's, and holds none of their keys and values."""

    tokens: int

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.tokens

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The keys and values given, and no others."""
        return keys, values


def positions_argument(layer: nn.Module) -> str | None:
    """The argument by which a layer that counts positions is told of tokens before; None for other
    layers.
    """
    if not any(map(_counts, layer.modules())):
        return None
    takes = inspect.signature(type(layer).forward).parameters
    return next((name for name in CACHES if name in takes), CACHES[0])


@contextmanager
def counting_soon(layer: nn.Module) -> Iterator[None]:
    """Positions matter among the first few tokens inside, so that a check on few sees them."""
    counting: list[Any] = [module for module in layer.modules() if _counts(module)]
    before = [(module, module.floor_scale) for module in counting]
    try:
        for module, scale in before:
            module.floor_scale = min(scale, _SOON)
        yield
    finally:
        for module, scale in before:
            module.floor_scale = scale


def _counts(module: Any) -> bool:
    tunes = getattr(module, "attn_temperature_tuning", False)
    return bool(tunes) and not getattr(module, "use_rope", True)
