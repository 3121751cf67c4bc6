"""Invariant 2 in bf16: no further from a float32 reference than the unwrapped bf16 model is.

Scope: errors against the same weights run unwrapped in float32, averaged over several draws of
weights and tokens: of one draw, which of two equally good roundings lies nearer is a coin toss.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest

from tests.families.catalogue import FAMILIES, Family
from tests.families.harness import (
    Step,
    build,
    global_error,
    random_batch,
    train_step,
    wrap_family,
)

SEEDS = range(3)
TOKENS = 37

LOSS_FLOOR = 1e-3
"""Absolute, of losses of about 5, whose bf16 ulp is 3e-2: a mean of rounding errors of either sign
over some tokens is as often 1e-3 as 1e-4, for the unwrapped models too."""

GRADIENT_FLOOR = 1e-4
"""Relative; the unwrapped models' own errors are about a hundred times as large."""


@dataclass(slots=True)
class Errors:
    """Sums over draws, against float32."""

    loss: float = 0.0
    gradient: float = 0.0

    def add(self, got: Step, reference: Step) -> None:
        self.loss += abs(float(got.loss) - float(reference.loss)) / len(SEEDS)
        self.gradient += global_error(got.grads, reference.grads) / len(SEEDS)


def measure(family: Family, tile_tokens: int) -> tuple[Errors, Errors]:
    """The errors of the wrapped and of the unwrapped bf16 model, means over `SEEDS`."""
    ours, plain = Errors(), Errors()
    for seed in SEEDS:
        model = build(family, seed=seed).bfloat16()
        batch = random_batch(2, TOKENS, seed=seed)
        reference = train_step(copy.deepcopy(model).float(), batch)
        plain.add(train_step(model, batch), reference)
        ours.add(train_step(wrap_family(family, model, tile_tokens=tile_tokens), batch), reference)
    return ours, plain


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_error_is_no_larger_than_the_unwrapped_models(family: Family) -> None:
    ours, plain = measure(family, tile_tokens=5)
    assert ours.loss <= 1.1 * plain.loss + LOSS_FLOOR
    assert ours.gradient <= 1.1 * plain.gradient + GRADIENT_FLOOR
