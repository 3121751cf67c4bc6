"""ZeRO-3 and FSDP2 gather a layer once per layer and pass, not once per tile: with and without
sequence parallelism as often as for the unwrapped model.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributed.collectives import LAYERS, Gathers, Wrapped, fsdp2, zero3
from tests.distributed.ranks import run_ranks

CASES = [
    Wrapped(tile_tokens=None),
    Wrapped(tile_tokens=100),
    Wrapped(tile_tokens=5),
    Wrapped(tile_tokens=5, degree=2),
]


def _gathers(job: Callable[..., list[Gathers]], folder: Path) -> list[Gathers]:
    first, *others = run_ranks(job, 2, folder, CASES, limit_s=280.0)
    assert all(other == first for other in others)
    assert [gathers.tiles for gathers in first] == [1, 1, 8, 4]
    found: list[Gathers] = first
    return found


@pytest.mark.timeout(300)
def test_fsdp2(tmp_path: Path) -> None:
    for gathers in _gathers(fsdp2, tmp_path):
        # What stands outside layers is gathered in forward, and stays.
        assert (gathers.forward, gathers.backward) == (LAYERS + 1, LAYERS)


@pytest.mark.long
@pytest.mark.timeout(300)  # deepspeed compiles an operator when it is first used
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install 'memo-offload[deepspeed]'")
def test_zero3(tmp_path: Path) -> None:
    for gathers in _gathers(zero3, tmp_path):
        # Beside layers: embedding, norm and head.
        assert (gathers.forward, gathers.backward) == (LAYERS + 3, LAYERS + 3)
