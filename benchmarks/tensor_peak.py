"""The most bytes of tensors that a processor's process has at a time.

Scope: one measurement, by watching every operation. Resident memory has more: kernels' scratch,
and what transports stage.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from planner.trace.recorder import Recorder, peak_bytes


@dataclass(slots=True)
class TensorPeak:
    """How far tensors' bytes rose above what they were on entry, once the block is over."""

    growth_bytes: int = 0


@contextmanager
def tensor_peak() -> Iterator[TensorPeak]:
    """Watch what runs inside."""
    found, recorder = TensorPeak(), Recorder(with_costs=False)
    with recorder:
        recorder.know(living_tensors())
        base_bytes = sum(storage.size_bytes for storage in recorder.tape.storages)
        yield found
    found.growth_bytes = peak_bytes(recorder.tape) - base_bytes


def living_tensors() -> Iterator[Tensor]:
    """All that are alive, those that only C++ holds excepted."""
    gc.collect()
    # Some modules' objects answer `isinstance` with a warning.
    return (found for found in gc.get_objects() if issubclass(type(found), Tensor))
