"""Fixtures for the tests that need a GPU: the device, determinism, skipping without one.

Scope: nothing here asserts. These tests run with torch, transformers and pytest alone, and without
the project's settings of pytest (`benchmarks/gpu_tests.py`).
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import offload.recording

_HERE = Path(__file__).parent


_COMPILED = re.compile(r"flex|gemma2|gpt_oss")
"""Tests that compile, by their names: half a minute each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, and skip it without a device. What takes longest begins first."""
    if all(_HERE in item.path.parents for item in items):
        items.sort(key=lambda item: _COMPILED.search(item.name) is None)
    missing = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("gpu")
            if not torch.cuda.is_available():
                item.add_marker(missing)


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The device, with nothing of other tests on it."""
    yield torch.device("cuda", torch.cuda.current_device())
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels that give the same bits each time: those of attention's backward add in the order in
    which blocks happen to end, otherwise. cuBLAS wants to be told so by the environment.
    """
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a few kilobytes stay on the device under HOST; here they go as well."""
    monkeypatch.setattr(offload.recording, "_SMALL_BYTES", 0)
