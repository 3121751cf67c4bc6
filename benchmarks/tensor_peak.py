"""The most bytes of tensors that a processor's process has at a time.

Scope: one measurement, by watching every operation. Resident memory has more: kernels' scratch,
and what transports stage.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType

from torch import Tensor

from planner.trace.recorder import Recorder, peak_bytes


class TensorPeak(AbstractContextManager["TensorPeak"]):
    """`base_bytes` of storages on entry, and on exit `growth_bytes` above them at most."""

    def __init__(self) -> None:
        self.base_bytes = self.growth_bytes = 0
        self._recorder = Recorder(with_costs=False)

    def __enter__(self) -> TensorPeak:
        self._recorder.__enter__()  # type: ignore[no-untyped-call]
        self._recorder.know(living_tensors())
        self.base_bytes = sum(storage.size_bytes for storage in self._recorder.tape.storages)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._recorder.__exit__(kind, error, trace)
        self.growth_bytes = peak_bytes(self._recorder.tape) - self.base_bytes


def living_tensors() -> Iterator[Tensor]:
    """All that are alive, those that only C++ holds excepted."""
    gc.collect()
    # Some modules' objects answer `isinstance` with a warning.
    return (found for found in gc.get_objects() if issubclass(type(found), Tensor))
