"""Comparing what two ways of running a layer gave.

Scope: errors against tolerances.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
_LOOSEST = 5e-2


def differs(
    got: Sequence[Tensor | None],
    expected: Sequence[Tensor | None],
    names: Sequence[str],
    dtype: torch.dtype,
) -> str | None:
    """What is wrong with the first of `got` that is not as `expected`; None when all are.

    The first of them is the output, the others are gradients.
    """
    # Some gradients are zero but for rounding (a bias on k shifts all of a query's scores alike),
    # so an error is held against the largest of them too.
    floor = 1e-2 * max(float(t.float().norm()) for t in expected[1:] or expected if t is not None)
    for name, ours, plain in zip(names, got, expected, strict=True):
        error = _relative_error(ours, plain, floor if name != "output" else 0.0)
        if not error <= _TOLERANCE.get(dtype, _LOOSEST):
            return f"run tile by tile, its {name} is off by {error:.1e}"
    return None


def _relative_error(ours: Tensor | None, plain: Tensor | None, floor: float) -> float:
    if ours is None or plain is None:
        # No gradient is a gradient of zero.
        other = ours if plain is None else plain
        return 0.0 if other is None or not other.any() else float("inf")
    scale = plain.float().norm().clamp_min(max(floor, 1e-12))
    return float((ours.float() - plain.float()).norm() / scale)
