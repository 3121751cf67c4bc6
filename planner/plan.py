"""What the planner answers: a plan, or why there is none.

Scope: plain data, its checks, and its JSON form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from planner.codec import PlanError, decode, encode, loads
from planner.contracts import Lane, Stored, SwapPlan, Tier, Workload, check_at_least
from planner.hardware.contracts import Hardware

SCHEMA_VERSION = 1
"""Of a plan's JSON. It grows when a field changes its meaning, or goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What a step of the plan does on one rank. `peak_bytes` by tier; `exposed_s`: seconds in which
    compute waits, by the lane it waits for; `mfu` counts the model's FLOPs without recomputation
    against the peak rate; `tokens_per_s` is of all ranks. `binding`: what would shorten the step if
    there were more of it, dearest first. `gap`: how far, relatively, a better swap plan may lie.
    `longest_tokens` None: not asked. Arena figures are the layout's, `reserved_bytes` what the
    caching allocator would take instead; None: not laid out.
    """

    step_s: float
    compute_s: float
    recompute_s: float
    exposed_s: Mapping[Lane, float]
    mfu: float
    tokens_per_s: float
    peak_bytes: Mapping[Tier, int]
    moved_bytes: Mapping[Lane, int]
    ssd_written_bytes_per_step: int
    binding: tuple[str, ...] = ()
    gap: float = 0.0
    longest_tokens: int | None = None
    arena_bytes: int | None = None
    arena_lower_bound_bytes: int | None = None
    reserved_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.step_s > 0:
            raise ValueError(f"step_s is {self.step_s}: takes seconds above 0")
        figures = ("compute_s", "recompute_s", "mfu", "tokens_per_s", "gap")
        check_at_least(0, **{name: getattr(self, name) for name in figures})
        check_at_least(0, ssd_written_bytes_per_step=self.ssd_written_bytes_per_step)
        for field in ("exposed_s", "peak_bytes", "moved_bytes"):
            items = getattr(self, field).items()
            check_at_least(0, **{f"{field}.{key}": value for key, value in items})


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A plan that fits: it was simulated, one rank a GPU, and broke no budget. `notes`: what was
    chosen or assumed, in sentences.
    """

    workload: Workload
    hardware: Hardware
    swap: SwapPlan
    predictions: Predictions
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        planned, layers = len(self.swap.layers), self.workload.layer_count
        if planned != layers:
            raise ValueError(f"swap.layers has {planned}: takes {layers}, as in workload.layers")
        if self.workload.sequence_parallel == 1 and self.swap.stored is not Stored.BEFORE:
            raise ValueError(
                f"swap.stored is {self.swap.stored}: takes {Stored.BEFORE} where no ranks share a "
                "sequence (workload.sequence_parallel is 1)"
            )
        _check_node(self.workload, self.hardware, self.swap)
        _check_peaks(self.hardware, self.swap, self.predictions.peak_bytes)

    def check(self, workload: Workload) -> None:
        """Raise `PlanError` that names all differences when the plan was made for another workload.

        `model` may be another name of the same thing: layers and parameters tell.
        """
        names = [f.name for f in fields(Workload) if f.name != "model"]
        differences = [
            f"{name} is {_shown(actual)}, planned was {_shown(planned)}"
            for name in names
            if (actual := getattr(workload, name)) != (planned := getattr(self.workload, name))
        ]
        if differences:
            raise PlanError(
                f"the plan was made for something else ({self.workload.model}): "
                + "; ".join(differences)
            )

    def to_json(self) -> str:
        """The plan as JSON, with its schema version."""
        data = {"memo_plan": SCHEMA_VERSION, **encode(self)}
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises `PlanError` that names the field that is wrong."""
        data = loads(text, "the plan")
        if not isinstance(data, dict) or "memo_plan" not in data:
            raise PlanError("this is no plan: it has no 'memo_plan', the version of its schema")
        version = data.pop("memo_plan")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise PlanError(
                f"memo_plan is {version!r}: this version of memo reads {SCHEMA_VERSION}"
            )
        return decode(cls, data, "plan")

    def save(self, path: str | Path) -> None:
        """Raises `OSError` when the file cannot be written."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Raises `PlanError`, which names the file and the field, and `OSError`."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (PlanError, UnicodeDecodeError) as error:
            raise PlanError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPlan:
    """Nothing fits. `missing_bytes`: for each budget (a tier), the smallest increase that would
    make it fit if the others stayed, None when none would; the budgets with one are what binds.
    `longest_tokens`: the longest sequence that fits now; 0 when none does, None when not asked.
    `notes` as a plan's.
    """

    workload: Workload
    hardware: Hardware
    missing_bytes: Mapping[Tier, int | None]
    longest_tokens: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def binding(self) -> tuple[Tier, ...]:
        return tuple(tier for tier, missing in self.missing_bytes.items() if missing is not None)


def _check_node(workload: Workload, hardware: Hardware, swap: SwapPlan) -> None:
    if hardware.gpus != workload.ranks:
        raise ValueError(
            f"hardware.gpus is {hardware.gpus}: takes {workload.ranks}, as workload.ranks"
        )
    if hardware.disks is not None:
        return
    if workload.offload_optimizer == "ssd":
        raise ValueError("workload.offload_optimizer is ssd: takes hardware.disks as well")
    for index, layer in enumerate(swap.layers):
        if Tier.SSD in layer.tiers:
            raise ValueError(f"swap.layers[{index}] uses the ssd: takes hardware.disks as well")


def _check_peaks(hardware: Hardware, swap: SwapPlan, peak_bytes: Mapping[Tier, int]) -> None:
    """Against a rank's share of the node."""
    for tier in Tier:
        is_used = tier is Tier.DEVICE or any(tier in layer.tiers for layer in swap.layers)
        if is_used and tier not in peak_bytes:
            raise ValueError(f"predictions.peak_bytes is without {tier}: takes all that is used")
    ssd_bytes = 0 if hardware.disks is None else hardware.disks.total_bytes
    budgets = {
        Tier.DEVICE: hardware.device_bytes,
        Tier.HOST: hardware.host_bytes // hardware.gpus,
        Tier.SSD: ssd_bytes // hardware.gpus,
    }
    for tier, peak in peak_bytes.items():
        if peak > budgets[tier]:
            raise ValueError(
                f"predictions.peak_bytes.{tier} is {peak}: takes {budgets[tier]} at most, what "
                "hardware has of it for a rank"
            )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " + ".join(f"{run.count} x {run.layer_class}" for run in value)
    return str(value)
