"""CUDA's streams: two side streams for the lanes, and whatever stream the caller computes on.

Scope: `offload.streams` for one CUDA device. No call here blocks the host, but for pinning memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from offload.contracts import MemoError
from offload.host_memory import host_memory
from offload.streams import Event, Stream

_MILLISECOND_S = 1e-3
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device of the process."""


@dataclass(frozen=True, slots=True)
class CudaEvent:
    """A recorded event; with times it costs a microsecond more, and shows what waited. Blocking:
    who waits for it sleeps.
    """

    event: torch.cuda.Event

    def is_done(self) -> bool:
        return bool(self.event.query())

    def synchronize(self) -> None:
        # In a thread of a disk's, which would otherwise begin to use the first device.
        with torch.cuda.device(self.event.device):
            self.event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        return float(cast(CudaEvent, earlier).event.elapsed_time(self.event)) * _MILLISECOND_S


@dataclass(frozen=True, slots=True)
class CudaStream:
    """One stream of the device."""

    stream: torch.cuda.Stream

    def record(self) -> CudaEvent:
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(self.stream)
        return CudaEvent(event)

    def wait(self, event: Event) -> None:
        self.stream.wait_event(cast(CudaEvent, event).event)

    def copy(self, target: Tensor, source: Tensor) -> None:
        with self.active():
            target.copy_(source, non_blocking=True)

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.stream(self.stream):
            yield


class CudaStreams:
    """See `offload.streams.Streams`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.d2h: Stream = CudaStream(torch.cuda.Stream(device))
        self.h2d: Stream = CudaStream(torch.cuda.Stream(device))

    def current(self) -> Stream:
        return CudaStream(torch.cuda.current_stream(self._device))

    def landing(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def share(self, memory: Tensor) -> None:
        memory.record_stream(torch.cuda.current_stream(self._device))

    def host_memory(self, size_bytes: int) -> Tensor:
        """See `offload.streams.Streams`.

        Raises:
            MemoryError: when the system refuses the memory.
            MemoError: when it cannot be pinned (a limit on locked memory, mostly).
        """
        memory = host_memory(size_bytes)
        runtime, address = torch.cuda.cudart(), memory.data_ptr()
        status = int(runtime.cudaHostRegister(address, size_bytes, _PORTABLE))
        if status != 0:
            raise MemoError(
                f"CUDA could not pin {size_bytes:,} bytes of host memory (error {status}); "
                "see `ulimit -l`, and the memory that is left"
            )
        # The finalizer holds the storage, so that memory is unpinned before it is unmapped.
        weakref.finalize(memory, _unpin, memory.untyped_storage(), address)
        return memory


def _unpin(_: torch.UntypedStorage, address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)
