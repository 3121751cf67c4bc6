"""Invariant 1: placement never changes a bit of any gradient.

Scope: one tiling, every placement, mixes, and both places of the skeletal tensors.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.families.catalogue import FAMILIES, Family
from tests.families.harness import (
    assert_equal_grads,
    build,
    random_batch,
    train_step,
    wrap_family,
)

OTHERS: tuple[dict[str, Any], ...] = (
    {"placement": "keep"},
    {"placement": "host"},
    {"placement": {"keep": 0.3, "host": 0.3, "recompute": 0.4}},
    {"placement": {"host": 0.5, "recompute": 0.5}, "skeletal": "host"},
    {"placement": "recompute", "skeletal": "host"},
    {"placement": "keep", "skeletal": "host"},
    {"placement": {"ssd": 0.6, "recompute": 0.4}, "skeletal": "ssd", "in_flight_bytes": 0},
)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_gradients_are_equal_bit_by_bit(family: Family, tmp_path: Path) -> None:
    model, batch = build(family), random_batch(2, 23)
    recomputed = wrap_family(family, copy.deepcopy(model), tile_tokens=5)
    expected = train_step(recomputed, batch)
    for options in OTHERS:
        spill = {"spill_dir": tmp_path} if "ssd" in options.values() else {}
        other = wrap_family(family, copy.deepcopy(model), tile_tokens=5, **options, **spill)
        got = train_step(other, batch)
        assert float(got.loss) == float(expected.loss), options
        assert_equal_grads(got.grads, expected.grads)
