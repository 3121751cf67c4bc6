"""Fixtures for all tests of behaviour: unasked warnings fail, and HOST is the host."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

import memo
import offload.recording


@pytest.fixture(autouse=True)
def no_unasked_warning() -> Iterator[None]:
    """A warning of memo that a test does not ask for fails it, wherever it was raised from.
    (`pytest.warns` inside a test still catches what it asks for.)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", memo.MemoWarning)
        yield


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a few kilobytes stay on the device under HOST, and the models here have no
    others.
    """
    monkeypatch.setattr(offload.recording, "_SMALL_BYTES", 0)
