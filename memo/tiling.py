"""How many tokens a tile has when the user does not say.

Scope: one rule, from the shapes of a call.
"""

from __future__ import annotations

from torch import Tensor, nn

_MIN_TOKENS = 256
"""Matmuls of fewer rows leave matmul units idle."""

_TILE_BYTES = {"cpu": 32 << 20}
"""Bytes that one tile's widest tensors may take, by device type. On a CPU tiles that stay near the
caches are faster than large ones (measured with benchmarks/context.py); an accelerator needs large
ones to be busy.
"""

_ACCELERATOR_TILE_BYTES = 512 << 20


def auto_tile_tokens(x: Tensor, layer: nn.Module) -> int:
    """A power of two, so that tiles of different lengths have the same shape.

    Args:
        x: the layer's input, [batch, tokens, hidden].
        layer: its widest weight tells how wide a token gets inside (the MLP's intermediate size,
            mostly).
    """
    widest = max((max(p.shape) for p in layer.parameters() if p.ndim == 2), default=x.shape[-1])
    token_bytes = x.shape[0] * widest * x.element_size()
    budget = _TILE_BYTES.get(x.device.type, _ACCELERATOR_TILE_BYTES)
    tokens = max(_MIN_TOKENS, budget // (8 * token_bytes))
    return 1 << (tokens.bit_length() - 1)
