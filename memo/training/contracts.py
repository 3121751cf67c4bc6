"""The data that flows through `memo train` and `memo demo`, and the error they refuse with.

Plain dataclasses only. What fills them is in `finetune.py` and `compare.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Mode = Literal["plain", "checkpointing", "wrapped"]
MODES: tuple[Mode, ...] = ("plain", "checkpointing", "wrapped")

# The steps of the comparison, counted from 0: one that warms up, one whose memory is measured, one
# that warms up again (see `worker.py`), and those that are timed.
MEMORY_STEP = 1
FIRST_TIMED_STEP = 3

Fit = Literal["done", "out of memory", "failed"]

Dtype = Literal["auto", "bfloat16", "float32"]


class RefusedInputError(Exception):
    """What the user gave can't be read or used; the message says what, why, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrapOptions:
    """The arguments of `memo.wrap`, as the command line takes them; `wrap` itself checks them. And
    `memo.report`'s `endurance_tbw`.
    """

    tile_tokens: int | Literal["auto"] = "auto"
    placement: str | dict[str, float] = "recompute"
    skeletal: str = "keep"
    host_bytes: int | None = None
    spill_dir: list[str] | None = None
    verify: str = "none"
    raw: bool = False
    endurance_tbw: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """One call of `memo train`. `steps` of None means one pass over the data."""

    model: str
    data: Path
    glob: str = "*"
    tokens: int
    output: Path
    steps: int | None = None
    lr: float = 1e-4
    max_grad_norm: float = 1.0
    seed: int = 0
    dtype: Dtype = "auto"
    device: str = "auto"
    save_every: int = 0
    resume: bool = False
    wrap: WrapOptions = field(default_factory=WrapOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One optimizer step: its number from 0, loss and gradient norm before the update, its time.

    Where the norm is no finite number the optimizer left the weights alone. `cpu_s` are the seconds
    that all cores together worked for the process.
    """

    step: int
    loss: float
    grad_norm: float
    seconds: float
    cpu_s: float


OnStep = Callable[[StepRecord], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One case of the comparison, as it is sent to its own process (JSON on standard input).

    `model` is a name or a folder that transformers loads; `tokens_file` a `.npy` file of token ids,
    int32, [windows, tokens], which the steps walk through in order, again and again.
    """

    mode: Mode
    model: str
    tokens_file: str
    steps: int
    lr: float
    max_grad_norm: float
    seed: int
    dtype: Literal["bfloat16", "float32"]
    threads: int
    memory_limit_bytes: int | None
    wrap: WrapOptions = field(default_factory=WrapOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseResult:
    """What one process of the comparison found; a case that didn't fit has what it got to.

    `timeline` holds (seconds since the step began, resident bytes) of the step MEMORY_STEP.
    `base_bytes` is the resident memory when that step began, `peak_bytes` its highest point.
    """

    mode: Mode
    fit: Fit = "done"
    reason: str = ""
    steps: tuple[StepRecord, ...] = ()
    base_bytes: int = 0
    peak_bytes: int = 0
    timeline: tuple[tuple[float, int], ...] = ()
    report: str = ""

    @property
    def timed(self) -> tuple[StepRecord, ...]:
        """The steps that the time is taken of."""
        return self.steps[FIRST_TIMED_STEP:]

    @property
    def step_s(self) -> float | None:
        """Median seconds of the timed steps, None if there was none."""
        return statistics.median(record.seconds for record in self.timed) if self.timed else None

    def cores(self) -> float | None:
        """How many cores the process had in the timed steps, on average."""
        seconds = sum(record.seconds for record in self.timed)
        return sum(record.cpu_s for record in self.timed) / seconds if seconds else None
