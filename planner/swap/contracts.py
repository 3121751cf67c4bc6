"""What the swap plan and the simulation know of a step: seconds and bytes of its parts, rates of
lanes, and budgets. All of it is one rank's.

Scope: plain data and its checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.contracts import Lane, Stored, Tier, check_at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentTimes:
    """Seconds of one layer's segments, all tiles together."""

    pre_s: float = 0.0
    core_s: float = 0.0
    post_s: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, pre_s=self.pre_s, core_s=self.core_s, post_s=self.post_s)

    @property
    def total_s(self) -> float:
        return self.pre_s + self.core_s + self.post_s


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentBytes:
    """The most device bytes that are live while a segment of one layer runs, and go with it: what
    is stored of other layers or tiles is not among them, the layer's own x and o are. `last_bytes`:
    of `post` while its last, shorter tile runs (None: as `post_bytes`). `stored`: the same of a
    layer whose tiles are all stored, beyond what they store (None: as of one that recomputes them).
    """

    pre_bytes: int = 0
    core_bytes: int = 0
    post_bytes: int = 0
    last_bytes: int | None = None
    stored: SegmentBytes | None = None

    def __post_init__(self) -> None:
        check_at_least(0, pre_bytes=self.pre_bytes, core_bytes=self.core_bytes)
        check_at_least(0, post_bytes=self.post_bytes, last_bytes=self.last_bytes or 0)

    def tile_bytes(self, *, is_last: bool) -> int:
        """Of `post` while one of its tiles runs."""
        short = self.last_bytes if is_last else None
        return self.post_bytes if short is None else short

    def of(self, *, is_stored: bool) -> SegmentBytes:
        """Where tiles are stored, or where they are not."""
        return self.stored if is_stored and self.stored is not None else self


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """One layer run as `tiles` tiles of equal length, but for the last, which is `last_tile` of it.

    `backward` is of tiles that are held; `recompute` comes on top when all tiles are recomputed:
    `post_s` before the core's backward, `pre_s` after it (0 where `pre` is held). `tile_bytes` is
    what one full tile stores beside x and o; `tile_pre_bytes` of these are wanted by `pre`'s
    backward, after the core's. `o_bytes` counts the log-sum-exp; `o_core_bytes` of these are made
    by the core for its own backward, so that `post` does without them, in both directions: they
    are live in `core` alone, and stored beside that. `gradient_bytes`: what the layer's backward
    leaves on the device until the step ends. Live bytes are of a layer whose tiles are all
    recomputed.
    `is_whole`: the layer cannot be cut, and its x is part of what its one tile stores: it goes
    where the tile goes, and stays on the device while that is kept or recomputed.
    """

    name: str
    tiles: int
    last_tile: float = 1.0
    forward: SegmentTimes
    backward: SegmentTimes
    recompute: SegmentTimes
    x_bytes: int
    o_bytes: int
    tile_bytes: int
    tile_pre_bytes: int = 0
    o_core_bytes: int = 0
    gradient_bytes: int = 0
    forward_live: SegmentBytes = field(default_factory=SegmentBytes)
    backward_live: SegmentBytes = field(default_factory=SegmentBytes)
    is_whole: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, tiles=self.tiles)
        if self.is_whole and self.tiles != 1:
            raise ValueError(f"tiles is {self.tiles}: a whole layer has one")
        if not 0 < self.last_tile <= 1:
            raise ValueError(f"last_tile is {self.last_tile}: takes a share above 0 and at most 1")
        sizes = ("x_bytes", "o_bytes", "tile_bytes", "tile_pre_bytes", "gradient_bytes")
        check_at_least(0, **{name: getattr(self, name) for name in (*sizes, "o_core_bytes")})
        if self.o_core_bytes > self.o_bytes:
            raise ValueError(
                f"o_core_bytes is {self.o_core_bytes}: takes o_bytes, {self.o_bytes}, or less"
            )
        if self.recompute.core_s:
            raise ValueError(
                f"recompute.core_s is {self.recompute.core_s}: a core is not run again"
            )
        if self.tile_pre_bytes > self.tile_bytes:
            raise ValueError(
                f"tile_pre_bytes is {self.tile_pre_bytes}: takes tile_bytes, {self.tile_bytes}, or "
                "less"
            )

    @property
    def skeletal_bytes(self) -> int:
        return self.x_bytes + self.o_bytes

    @property
    def all_bytes(self) -> int:
        """All that can be stored."""
        return self.skeletal_bytes + self.tiles * self.tile_bytes

    @property
    def recompute_tile_s(self) -> float:
        """Of one full tile."""
        return self.recompute.total_s / (self.tiles - 1 + self.last_tile)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartCost:
    """The embedding, or the head with the loss. Live bytes are those that go with the part."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    forward_live_bytes: int = 0
    backward_live_bytes: int = 0
    gradient_bytes: int = 0

    def __post_init__(self) -> None:
        names = ("forward_live_bytes", "backward_live_bytes", "gradient_bytes")
        check_at_least(0, forward_s=self.forward_s, backward_s=self.backward_s)
        check_at_least(0, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """A training step. `layers` in forward order (equal layers may be one object); `resident_bytes`
    by tier are there throughout: weights, optimizer states, inputs. `model_flops`: forward and
    backward without recomputation, of this rank's share. `stored`: what the costs of attention's
    backward are for. `optimizer_lanes_s`: what of `optimizer_s` is spent on which lane.
    """

    tile_tokens: int
    layers: tuple[LayerCost, ...]
    embedding: PartCost = field(default_factory=PartCost)
    head: PartCost = field(default_factory=PartCost)
    optimizer_s: float = 0.0
    optimizer_lanes_s: Mapping[Lane, float] = field(default_factory=dict)
    resident_bytes: Mapping[Tier, int] = field(default_factory=dict)
    model_flops: float = 0.0
    stored: Stored = Stored.BEFORE

    def __post_init__(self) -> None:
        check_at_least(1, tile_tokens=self.tile_tokens)
        check_at_least(0, optimizer_s=self.optimizer_s, model_flops=self.model_flops)
        for lane, seconds in self.optimizer_lanes_s.items():
            check_at_least(0, **{f"optimizer_lanes_s of {lane}": seconds})
        if not self.layers:
            raise ValueError("layers is empty: takes one layer or more")

    @property
    def compute_s(self) -> float:
        """Without recomputation or waiting."""
        layers_s = sum(layer.forward.total_s + layer.backward.total_s for layer in self.layers)
        parts_s = sum(part.forward_s + part.backward_s for part in (self.embedding, self.head))
        return layers_s + parts_s + self.optimizer_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Bytes per second of each lane, and the device's peak FLOP/s. A node's disks serve all of its
    ranks: rates are one rank's share. SSD rates 0: there is none.
    """

    d2h_bytes_per_s: float
    h2d_bytes_per_s: float
    ssd_write_bytes_per_s: float = 0.0
    ssd_read_bytes_per_s: float = 0.0
    peak_flops_per_s: float = 1e12

    def __post_init__(self) -> None:
        if not min(self.d2h_bytes_per_s, self.h2d_bytes_per_s, self.peak_flops_per_s) > 0:
            raise ValueError(f"rates are {self}: takes rates above 0")
        check_at_least(0, ssd_write_bytes_per_s=self.ssd_write_bytes_per_s)
        check_at_least(0, ssd_read_bytes_per_s=self.ssd_read_bytes_per_s)

    @property
    def has_ssd(self) -> bool:
        return self.ssd_write_bytes_per_s > 0 and self.ssd_read_bytes_per_s > 0

    def of(self, lane: Lane) -> float:
        """Bytes per second of a lane."""
        return {
            Lane.D2H: self.d2h_bytes_per_s,
            Lane.H2D: self.h2d_bytes_per_s,
            Lane.SSD_WRITE: self.ssd_write_bytes_per_s,
            Lane.SSD_READ: self.ssd_read_bytes_per_s,
        }[lane]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budgets:
    """Bytes that one rank may take of each tier, and that its copies may hold of the device while
    they are under way (as much again of the host where the SSD is used); `in_flight_bytes` None:
    the plan chooses.
    """

    device_bytes: int
    host_bytes: int = 0
    ssd_bytes: int = 0
    in_flight_bytes: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.device_bytes, self.host_bytes, self.ssd_bytes, self.in_flight_bytes or 0)
        names = ("device_bytes", "host_bytes", "ssd_bytes", "in_flight_bytes")
        check_at_least(0, **dict(zip(names, sizes, strict=True)))

    def of(self, tier: Tier) -> int:
        """Bytes of a tier."""
        return {
            Tier.DEVICE: self.device_bytes,
            Tier.HOST: self.host_bytes,
            Tier.SSD: self.ssd_bytes,
        }[tier]
