"""What the planner is asked and what it answers: a workload, and a plan or why there is none.

Scope: plain data, its checks, and its JSON form. Hardware, traces and layouts have contracts of
their own, beside what makes them. Names of tiers, lanes and placements are the runtime's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from planner.codec import PlanError, decode, encode, loads
from planner.hardware.contracts import Hardware

SCHEMA_VERSION = 1
"""Of a plan's JSON. It grows when a field changes its meaning, or goes."""


class Tier(StrEnum):
    """Where stored bytes lie."""

    DEVICE = "device"
    HOST = "host"
    SSD = "ssd"


class Placement(StrEnum):
    """Where a tile's rebuildable tensors are between forward and backward."""

    KEEP = "keep"
    HOST = "host"
    SSD = "ssd"
    RECOMPUTE = "recompute"


_TIERS = {Placement.KEEP: Tier.DEVICE, Placement.HOST: Tier.HOST, Placement.SSD: Tier.SSD}


class Stored(StrEnum):
    """What is stored for attention's backward, where the layer's `o` is, of what ranks that share a
    sequence exchange (a rank's heads, of all tokens): nothing, so that backward exchanges q, k, v
    and o again; o; or q, k, v and o, so that gradients are all that it exchanges.
    """

    BEFORE = "before"
    OUTPUT = "output"
    AFTER = "after"


class Lane(StrEnum):
    """Where transfers queue, each beside the others and beside compute."""

    D2H = "d2h"
    H2D = "h2d"
    SSD_WRITE = "ssd write"
    SSD_READ = "ssd read"


Train = Literal["full", "lora"]
OffloadOptimizer = Literal["none", "host", "ssd"]


def check_at_least(least: int, /, **values: float) -> None:
    """Raise `ValueError`, which opens with the name, for a value below `least`."""
    for name, value in values.items():
        if not value >= least:  # NaN is not
            raise ValueError(f"{name} is {value}: takes {least} or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRun:
    """`count` layers of one class, one after another."""

    layer_class: str
    count: int

    def __post_init__(self) -> None:
        check_at_least(1, count=self.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is trained, and how: a model's decoder layers in forward order, `parameters` of all its
    modules, `tokens` of one sequence over all ranks that share it, `batch` sequences a step and
    data-parallel rank. `sequence_parallel` ranks share a sequence; `ranks` are all.
    """

    model: str
    layers: tuple[LayerRun, ...]
    parameters: int
    tokens: int
    batch: int = 1
    dtype: str = "bfloat16"
    train: Train = "full"
    zero: Literal[0, 1, 2, 3] = 0
    offload_optimizer: OffloadOptimizer = "none"
    ranks: int = 1
    sequence_parallel: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, parameters=self.parameters, tokens=self.tokens, batch=self.batch)
        check_at_least(1, ranks=self.ranks, sequence_parallel=self.sequence_parallel)
        if not self.layers:
            raise ValueError("layers is empty: takes one run of layers or more")
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel is {self.sequence_parallel}: takes a divisor of ranks, "
                f"which is {self.ranks}"
            )
        if self.zero and self.ranks == 1:
            raise ValueError(f"zero is {self.zero}: takes 0 where ranks is 1")

    @property
    def layer_count(self) -> int:
        return sum(run.count for run in self.layers)

    @property
    def step_tokens(self) -> int:
        """Tokens of one step over all ranks."""
        return self.tokens * self.batch * (self.ranks // self.sequence_parallel)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSwap:
    """One layer: how many of its tiles are where (placements without a tile may be left out), and
    where its input `x` and attention's output `o` go.
    """

    tiles: Mapping[Placement, int]
    x: Tier = Tier.DEVICE
    o: Tier = Tier.DEVICE

    def __post_init__(self) -> None:
        for placement, count in self.tiles.items():
            check_at_least(0, **{f"tiles.{placement}": count})
        if not self.tile_count:
            raise ValueError("tiles is without a tile: takes one or more")

    @property
    def tile_count(self) -> int:
        return sum(self.tiles.values())

    @property
    def tiers(self) -> frozenset[Tier]:
        """Where any of it is stored."""
        used = (placement for placement, count in self.tiles.items() if count)
        return frozenset((self.x, self.o, *(_TIERS[p] for p in used if p in _TIERS)))

    def share(self, placement: Placement) -> float:
        """The fraction of the tiles that is there; what is not RECOMPUTE is MEMO's alpha."""
        return self.tiles.get(placement, 0) / self.tile_count


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapPlan:
    """Every layer in forward order; all have the same number of tiles, of `tile_tokens` local
    tokens each but for the last, or one tile where they run whole. `in_flight_bytes`: what copies
    may hold of the device while they are under way, and, where the SSD is used, as much of the
    host. `stored`: for attention's backward, where ranks share a sequence; BEFORE where none do.
    """

    tile_tokens: int
    in_flight_bytes: int
    layers: tuple[LayerSwap, ...]
    stored: Stored = Stored.BEFORE

    def __post_init__(self) -> None:
        check_at_least(1, tile_tokens=self.tile_tokens)
        check_at_least(0, in_flight_bytes=self.in_flight_bytes)
        if not self.layers:
            raise ValueError("layers is empty: takes one layer or more")
        first = next((i for i, layer in enumerate(self.layers) if layer.tile_count > 1), 0)
        for index, layer in enumerate(self.layers):
            if layer.tile_count not in (1, self.layers[first].tile_count):
                raise ValueError(
                    f"layers[{index}].tiles add up to {layer.tile_count}: takes "
                    f"{self.layers[first].tile_count}, as in layers[{first}], or 1"
                )


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
