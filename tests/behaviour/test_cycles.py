"""What a step makes is freed by reference counts: a tensor in a cycle would stay until Python's
collector happens to run, and the peak of memory would be a matter of luck.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import memo
from tests.families.catalogue import family_named
from tests.families.harness import build, random_batch, train_step

CASES: dict[str, dict[str, Any]] = {
    "keep": {"placement": "keep"},
    "recompute": {"placement": "recompute", "skeletal": "host"},
    "host": {"placement": "host", "skeletal": "host"},
    "ssd": {"placement": "ssd", "skeletal": "ssd"},
}


@pytest.fixture
def garbage() -> Iterator[list[object]]:
    """Filled by the next collection; none comes by itself."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield gc.garbage
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.parametrize("name", ["llama", "mixtral", "lfm2"])
@pytest.mark.parametrize("case", CASES)
def test_no_tensor_waits_for_the_collector(
    name: str, case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    spill: dict[str, Any] = {"spill_dir": tmp_path} if case == "ssd" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", memo.MemoWarning)  # of layers that run whole
        model = memo.wrap(build(family_named(name)), tile_tokens=16, **CASES[case], **spill)
    batch = random_batch(2, 50)
    for _ in range(2):
        train_step(model, batch)
    garbage = request.getfixturevalue("garbage")
    train_step(model, batch)
    gc.collect()
    # Some modules' objects answer `isinstance` with a warning.
    found = Counter(str(tuple(o.shape)) for o in garbage if issubclass(type(o), Tensor))
    assert not found
