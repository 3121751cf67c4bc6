"""Fixtures for the families: one thread.

At these sizes a second thread computes nothing faster, and waits for the first whenever something
else runs beside the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread while the tests of this folder run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
