"""How long a wrapped model's forward and backward take, measured as they run.

Scope: the clock, and where it starts and stops. A *pass* is from the start of the first layer's
forward to the end of its backward: all layers, the head and the loss, and whatever the caller does
between forward and backward; neither the embedding nor the optimizer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

Moment = float | torch.cuda.Event
"""By `time.perf_counter`, or in the device's own time, without making the host wait."""


@dataclass(slots=True)
class Passes:
    """Those that have come to their end since the last reset. The end of the very first one lets
    the device's peak memory start anew: it has what loading the model and trying kernels took.
    """

    _ended: deque[tuple[Moment, Moment]] = field(default_factory=deque)
    _of_peak: int = -1

    def __deepcopy__(self, _: dict[int, object]) -> Passes:
        """A copy of a model has run nothing, and events cannot be copied."""
        return Passes()

    @property
    def count(self) -> int:
        return len(self._ended)

    @property
    def has_peak(self) -> bool:
        """Whether the device's peak is of whole passes, without the first."""
        return self._of_peak > 0

    @property
    def median_s(self) -> float | None:
        """None: no pass has ended. The host waits for those that are under way on the device."""
        seconds = [_seconds(start, stop) for start, stop in self._ended]
        return median(seconds) if seconds else None

    def reset(self) -> None:
        self._ended.clear()
        self._of_peak = min(self._of_peak, 0)

    def begin(self, x: Tensor) -> Moment:
        """The first layer is about to run on `x`."""
        return _now(x.device)

    def end_with(self, y: Tensor, x: Tensor, start: Moment, *, is_one_node: bool) -> None:
        """Stop the clock when the layer's backward is over. `is_one_node`: the whole layer is the
        node that made `y`; otherwise its backward is over when `x` has its gradient, and is not
        measured where `x` takes none.
        """
        if is_one_node and y.grad_fn is not None:
            y.grad_fn.register_hook(partial(self._stop, start, x.device))
        elif x.requires_grad:
            x.register_hook(partial(self._stop, start, x.device))

    def _stop(self, start: Moment, device: torch.device, *_: object) -> None:
        self._ended.append((start, _now(device)))
        self._of_peak += 1
        if not self._of_peak and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def _now(device: torch.device) -> Moment:
    if device.type != "cuda":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: Moment, stop: Moment) -> float:
    if isinstance(start, float) and isinstance(stop, float):
        return stop - start
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(stop, torch.cuda.Event)
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000
