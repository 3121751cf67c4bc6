"""Weight updates held against those of one process.

Scope: the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tests.families.harness import FLOOR, TOLERANCE

Weights = Mapping[str, Tensor]


def wrong_updates(
    found: Weights, expected: Weights, start: Weights, steps: int
) -> dict[str, float]:
    """Relative errors of what training added to `start`, by name, beyond 1e-5 and what float32
    weights are rounded to in so many steps.

    Raises:
        AssertionError: for other parameters than expected, or a training that moved nothing.
    """
    assert found.keys() == expected.keys()
    norms = {name: float((expected[name] - start[name]).norm()) for name in expected}
    largest = max(norms.values())
    assert largest > 0
    wrong = {}
    for name, want in expected.items():
        scale = max(norms[name], FLOOR * largest)
        rounding = 2 * steps * 2**-24 * float(start[name].norm())
        error = float((found[name] - want).norm())
        if not error <= TOLERANCE * scale + rounding:
            wrong[name] = error / scale
    return wrong
