"""What flows through the benchmark: a job goes into a child process, a sample comes out.

Plain data and its JSON form only; `child` makes samples, `runner` collects them, `summary`
compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """What a child process measures; each has its own process, see `child` for the reasons."""

    TIME = "time"
    PEAK = "peak"
    PROFILE = "profile"
    FIT = "fit"
    RATE = "rate"


class Outcome(StrEnum):
    """How a job ended: as asked, refused memory, with an error that is no lack of memory, or not
    begun, for what it would have taken.
    """

    OK = "ok"
    DOES_NOT_FIT = "does not fit"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A randomly initialised Llama; without `head` the body alone is trained."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    dtype: str
    head: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One measurement of one case at one length; `tile_tokens` None leaves it to `memo.wrap`.

    Of a `FIT`: `account_layers` is the number of layers, beyond the shape's own, whose memory is
    accounted for, and attention is cut to `attention_tokens`; see `accounting` and `cut`. Cases
    that use a disk use it in `spill_dir`.
    """

    shape: Shape
    case: str
    tokens: int
    phase: Phase
    steps: int = 1
    tile_tokens: int | None = None
    device: str = "cpu"
    threads: int | None = None
    limit_bytes: int | None = None
    account_layers: int = 0
    attention_tokens: int | None = None
    spill_dir: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        return cls(**{**data, "shape": Shape(**data["shape"]), "phase": Phase(data["phase"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Hotspot:
    """An operator and what it took: calls, seconds of its own, bytes alive at the step's peak."""

    name: str
    calls: int = 0
    self_s: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Where a step's time went (`operators`) and what held memory at its peak (`holders`)."""

    operators: list[Hotspot]
    groups: list[Hotspot]
    holders: list[Hotspot]
    total_self_s: float
    peak_bytes: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        lists = {
            key: [Hotspot(**spot) for spot in data[key]]
            for key in ("operators", "groups", "holders")
        }
        return cls(**{**data, **lists})


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneUse:
    """What one lane did in a step: bytes that it moved, seconds in which it did, and seconds in
    which compute waited for it.
    """

    moved_bytes: int
    busy_s: float
    exposed_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one job gave. Fields that its phase doesn't measure keep their defaults.

    `cores_used` is CPU seconds by seconds of the timed steps: below the number of threads, the
    process had to share the machine, and its times are worth less.

    Beside an accelerator: `allocated_bytes` and `reserved_bytes` are the peaks of torch's allocator
    on the device (`capacity_bytes` is what the card has), `host_bytes` what is held on the host at
    the peak, `exposed_s` how long a step's compute waited for transfers. `step_flops` are a step's
    model FLOPs (`flops`), `wall_s` the process's whole life. `layer_bytes` and `layer_host_bytes`
    are what one layer holds between forward and backward, on the device and on the host. `lanes`
    are what the lanes did in a step, by name.
    """

    case: str
    tokens: int
    phase: Phase
    outcome: Outcome
    step_s: list[float] = field(default_factory=list)
    cores_used: float | None = None
    growth_bytes: int | None = None
    base_bytes: int | None = None
    process_peak_bytes: int | None = None
    method: str = ""
    loss: float | None = None
    profile: Profile | None = None
    message: str = ""
    layers: int | None = None
    step_flops: float | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    capacity_bytes: int | None = None
    host_bytes: int | None = None
    exposed_s: float | None = None
    layer_bytes: int | None = None
    layer_host_bytes: int | None = None
    matmul_flops_per_s: float | None = None
    wall_s: float | None = None
    lanes: dict[str, LaneUse] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        profile = data.get("profile")
        lanes = {name: LaneUse(**use) for name, use in data.get("lanes", {}).items()}
        typed = {
            "phase": Phase(data["phase"]),
            "outcome": Outcome(data["outcome"]),
            "profile": None if profile is None else Profile.from_json(profile),
            "lanes": lanes,
        }
        return cls(**{**data, **typed})
