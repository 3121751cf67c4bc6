"""What is chosen by the shapes of a call when the user does not say: tile size, and what to hold.

Scope: two rules.
"""

from __future__ import annotations

from torch import Tensor, nn

_MIN_TOKENS = 256
"""Matmuls of fewer rows leave matmul units idle."""

_TILE_BYTES = {"cpu": 32 << 20}
"""Bytes that one tile's widest tensors may take, by device type. On a CPU tiles that stay near the
caches are faster than large ones (measured with benchmarks/context.py).
"""

_ACCELERATOR_TILE_BYTES = 1 << 30
"""An accelerator needs large ones to be busy. What each tile costs beside its work is to add its
gradients of weights up in float32: at 2048 tokens, with 750 TFLOP/s and 2.9 TB/s (measured on an
H100), 12 bytes a weight take a fifth of the time of its 8 FLOPs a token and weight.
"""

_PRE_HIDDENS = 6
"""Hidden sizes per token that the graph of a layer's `pre` saves, about: a float32 norm's input and
output (2 each in half precision), its output again and the projections' input."""

_SKELETAL_HIDDENS = 2

_HOLD_BYTES = {"cpu": 256 << 20}
_ACCELERATOR_HOLD_BYTES = 2 << 30


def holds_pre(x: Tensor, layer_count: int) -> bool:
    """Whether to hold a layer's `pre` graphs through its core's backward, instead of running `pre`
    again.

    It saves 3% of a step at 8,192 tokens on a CPU (2 layers, hidden 576), less the longer the
    sequence; so only where it costs little beside x and o of all layers.

    Args:
        x: the layer's input, [batch, tokens, hidden].
        layer_count: decoder layers of the model.
    """
    held_bytes = _PRE_HIDDENS * x.numel() * x.element_size()
    allowed_bytes = _HOLD_BYTES.get(x.device.type, _ACCELERATOR_HOLD_BYTES)
    is_little = 0.25 * _SKELETAL_HIDDENS * layer_count >= _PRE_HIDDENS
    return is_little and held_bytes <= allowed_bytes


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
