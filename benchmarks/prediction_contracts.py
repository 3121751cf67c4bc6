"""What flows through the benchmark of predictions: jobs into child processes, results out.

Scope: plain data and its JSON form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

PLACEMENTS = ("keep", "host", "ssd", "recompute")
PLANNED = "planned"
"""A plan that was sought for a device with half the memory between the leanest and the fullest of
the others."""


class Work(StrEnum):
    """What a child process does: look at the machine, predict a model's cases at one length, or
    measure one case.
    """

    PROBE = "probe"
    PREDICT = "predict"
    MEASURE = "measure"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One child's. `placements`: of the cases that it is about; of a measurement one. `hardware`:
    as `planner.codec` encodes it; `plan_path`: where the plan of the planned case is.
    """

    work: Work
    model: str = ""
    tokens: int = 0
    placements: tuple[str, ...] = ()
    steps: int = 3
    spill_dir: str = ""
    threads: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    hardware: Mapping[str, Any] | None = None
    plan_path: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        placements = tuple(data["placements"])
        return cls(**{**data, "work": Work(data["work"]), "placements": placements})


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """Of one case: seconds and bytes of a step. `base_bytes`: on the device before it."""

    step_s: float
    exposed_s: float
    optimizer_s: float
    peak_bytes: int
    base_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Of one case. `cores_used`: CPU seconds by seconds of the timed steps; below the threads, the
    process had to share the machine, and its times are worth less.
    """

    step_s: list[float]
    cores_used: float
    exposed_s: float
    peak_bytes: int
    base_bytes: int
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One model, length and placement, predicted and measured; None where `problem` says why."""

    model: str
    tokens: int
    placement: str
    predicted: Predicted | None = None
    measured: Measured | None = None
    problem: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        predicted, measured = data.get("predicted"), data.get("measured")
        typed = {
            "predicted": None if predicted is None else Predicted(**predicted),
            "measured": None if measured is None else Measured(**measured),
        }
        return cls(**{**data, **typed})


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A child's. `hardware` of a probe; `predicted` by placement; `measured` of one case."""

    hardware: Mapping[str, Any] | None = None
    predicted: Mapping[str, Predicted] = field(default_factory=dict)
    measured: Measured | None = None
    calibration_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        measured = data["measured"]
        predicted = {name: Predicted(**of) for name, of in data["predicted"].items()}
        typed = {
            "predicted": predicted,
            "measured": None if measured is None else Measured(**measured),
        }
        return cls(**{**data, **typed})
