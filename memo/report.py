"""What a wrapped model did: kept, moved, recomputed, fell back.

Scope: reading the runtime's counts into plain data; how it is shown is `report_text.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from time import perf_counter

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from torch import nn

from memo.predicted import Figure, Measured, figures
from memo.report_text import shown
from memo.runtime import Runtime
from memo.wrap import runtime_of
from offload import Lane, Placement, Tier
from offload.meter import Meter
from planner.plan import Plan

_TERABYTE = 10**12
_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class KindReport:
    """Layers of one class. Tiles and bytes are sums over layer calls with a backward, since the
    last reset.
    """

    kind: str
    layers: int
    tiled: bool
    reason: str | None
    calls: int
    tiles: dict[Placement, int]
    stored_bytes: dict[Tier, int]
    skeletal_bytes: dict[Tier, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneReport:
    """One lane: its copies, seconds in which it copied, waited for others, and in which compute
    waited for it (exposed time).
    """

    copies: int
    moved_bytes: int
    busy_s: float
    waited_s: float
    exposed_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Wear:
    """What was written to disks: since `wrap`, and since the last reset in each pass (a forward and
    backward of all layers); `days` of going on like that until `endurance_tbw` are used up.
    """

    total_bytes: int
    bytes_per_pass: int
    spool_bytes: int
    endurance_tbw: float | None
    days: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What happened since `wrap` (or the last `reset`). `peak_bytes` is the store's, per tier;
    `device_peak_bytes` is the whole process's on the model's CUDA device (of several: the one with
    most) since the last reset, of whoever resets PyTorch's; None without one. `lanes` are
    those that were used; `forwarded_bytes` were asked for while they were still on the device, and
    `in_flight_peak_bytes` is what copies held of its memory at most; `spared_bytes` were to go to a
    disk and were not wanted any more before they were written. `host_memory_bytes` is the memory
    that was allocated on the host. `attention` names the kernel of every shape of call. `notes` are
    fallbacks and refusals, with how often. `predicted` sets a plan's figures beside what was
    measured, means of all passes since the last reset (the time's median). The first pass is slower
    than others: reset after it. The device's peak is of what follows the first pass: until then it
    has what loading the model and trying kernels took. Empty without a `plan`.
    """

    tile_tokens: int | None
    kinds: tuple[KindReport, ...]
    peak_bytes: dict[Tier, int]
    moved_bytes: dict[Tier, int]
    device_peak_bytes: int | None
    lanes: dict[Lane, LaneReport]
    forwarded_bytes: int
    in_flight_peak_bytes: int
    spared_bytes: int
    host_memory_bytes: int
    wear: Wear | None
    attention: dict[str, str]
    notes: dict[str, int]
    plan: Plan | None = None
    predicted: tuple[Figure, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from shown(self)

    def __str__(self) -> str:
        console = Console(width=120, no_color=True, force_terminal=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


def report(model: nn.Module, *, reset: bool = False, endurance_tbw: float | None = None) -> Report:
    """What a wrapped model did; `reset` lets the counts start anew, and PyTorch's peak memory
    statistics of the model's CUDA devices with them. `endurance_tbw` is the rated
    endurance of the drives in `spill_dir` together, in terabytes (10^12 bytes) written.

    Raises:
        ValueError: when `endurance_tbw` is not positive.
        MemoError: for a model that is not wrapped.
    """
    if endurance_tbw is not None and not endurance_tbw > 0:
        raise ValueError(f"endurance_tbw={endurance_tbw!r}: takes a number of terabytes above 0")
    runtime = runtime_of(model)
    result = _read(runtime, endurance_tbw)
    if reset:
        runtime.since_s = perf_counter()
        for count in runtime.counts.values():
            count.reset()
        runtime.store.reset_peaks()
        runtime.notes.clear()
        runtime.passes.reset()
        for device in _cuda_devices(runtime):
            torch.cuda.reset_peak_memory_stats(device)
    return result


def _cuda_devices(runtime: Runtime) -> list[torch.device]:
    """Where the layers are now, and where what they stored came from: an engine may keep parameters
    on the host between calls.
    """
    if not torch.cuda.is_available():
        return []
    params = (param for layer in runtime.layers for param in layer.module.parameters())
    found = dict.fromkeys((*(param.device for param in params), *runtime.store.hosts))
    return [device for device in found if device.type == "cuda"]


def _device_peak_bytes(runtime: Runtime) -> int | None:
    return max(map(torch.cuda.max_memory_allocated, _cuda_devices(runtime)), default=None)


def _read(runtime: Runtime, endurance_tbw: float | None) -> Report:
    kinds = tuple(_kind(runtime, kind) for kind in runtime.modes)
    counts = runtime.store.counts
    lanes = _lane_reports(runtime)
    return Report(
        tile_tokens=runtime.tile_tokens,
        kinds=kinds,
        peak_bytes={tier: count.peak_bytes for tier, count in counts.items()},
        moved_bytes={
            tier: count.moved_bytes for tier, count in counts.items() if tier != Tier.DEVICE
        },
        device_peak_bytes=_device_peak_bytes(runtime),
        lanes=lanes,
        forwarded_bytes=sum(meter.forwarded_bytes for meter in _meters(runtime)),
        in_flight_peak_bytes=max((m.in_flight_peak_bytes for m in _meters(runtime)), default=0),
        spared_bytes=sum(meter.spared_bytes for meter in _meters(runtime)),
        host_memory_bytes=sum(h.pool.size_bytes for h in runtime.store.hosts.values()),
        wear=_wear(runtime, lanes, endurance_tbw),
        attention={str(shape): choice.kernel for shape, choice in runtime.core.chosen.items()},
        notes=dict(runtime.notes),
        plan=None if runtime.forecast is None else runtime.forecast.plan,
        predicted=_predicted(runtime, lanes),
    )


def _predicted(runtime: Runtime, lanes: dict[Lane, LaneReport]) -> tuple[Figure, ...]:
    if runtime.forecast is None:
        return ()
    counts, passes = runtime.store.counts, _passes(runtime)
    peaks: dict[Tier, int | None] = {
        tier: counts[tier].peak_bytes for tier in (Tier.HOST, Tier.SSD)
    }
    if (device_bytes := _device_peak_bytes(runtime)) is not None:
        peaks[Tier.DEVICE] = device_bytes if runtime.passes.has_peak else None
    each = max(passes, 1)
    moved = {lane: found.moved_bytes / each for lane, found in lanes.items()}
    measured = Measured(
        passes=passes,
        pass_s=runtime.passes.median_s,
        peak_bytes=peaks,
        moved_bytes=moved,
        exposed_s={lane: found.exposed_s / each for lane, found in lanes.items()},
        ssd_written_bytes=moved.get(Lane.SSD_WRITE, 0.0),
    )
    return figures(runtime.forecast, measured)


def _passes(runtime: Runtime) -> float:
    """Of all layers."""
    return sum(count.calls for count in runtime.counts.values()) / len(runtime.layers)


def _wear(
    runtime: Runtime, lanes: dict[Lane, LaneReport], endurance_tbw: float | None
) -> Wear | None:
    disk = runtime.store.disk
    if disk is None:
        return None
    written_bytes = lanes[Lane.SSD_WRITE].moved_bytes if Lane.SSD_WRITE in lanes else 0
    passes = _passes(runtime)
    days = None
    if endurance_tbw is not None and written_bytes:
        bytes_per_s = written_bytes / (perf_counter() - runtime.since_s)
        days = endurance_tbw * _TERABYTE / bytes_per_s / _DAY_S
    return Wear(
        total_bytes=disk.written_bytes,
        bytes_per_pass=round(written_bytes / max(passes, 1)),
        spool_bytes=disk.size_bytes,
        endurance_tbw=endurance_tbw,
        days=days,
    )


def _meters(runtime: Runtime) -> list[Meter]:
    return [host.meter for host in runtime.store.hosts.values()]


def _lane_reports(runtime: Runtime) -> dict[Lane, LaneReport]:
    """The lanes' counts, added up over devices."""
    for host in runtime.store.hosts.values():
        host.streams.synchronize()
        host.sweep()
    names = [field.name for field in fields(LaneReport)]
    counts = {lane: [meter.counts[lane] for meter in _meters(runtime)] for lane in Lane}
    return {
        lane: LaneReport(**{name: sum(getattr(c, name) for c in parts) for name in names})
        for lane, parts in counts.items()
        if any(count.copies for count in parts)
    }


def _kind(runtime: Runtime, kind: str) -> KindReport:
    count, mode = runtime.counts[kind], runtime.modes[kind]
    return KindReport(
        kind=kind,
        layers=sum(layer.kind == kind for layer in runtime.layers),
        tiled=mode.is_tiled,
        reason=mode.reason,
        calls=count.calls,
        tiles=dict(count.tiles),
        stored_bytes=dict(count.stored_bytes),
        skeletal_bytes=dict(count.skeletal_bytes),
    )
