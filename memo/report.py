"""What a wrapped model did: kept, moved, recomputed, fell back.

Scope: reading the runtime's counts into plain data, and showing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.filesize import decimal
from rich.table import Table
from torch import nn

from memo.runtime import Runtime
from memo.wrap import runtime_of
from offload import Lane, Placement, Tier
from offload.meter import Meter


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
class Report:
    """What happened since `wrap` (or the last `reset`). `peak_bytes` is the store's, per tier;
    `device_peak_bytes` is the whole process's on its CUDA device, None without one. `lanes` are
    those that were used; `forwarded_bytes` were asked for while they were still on the device, and
    `in_flight_peak_bytes` is what copies held of its memory at most. `attention` names the kernel
    of every shape of call. `notes` are fallbacks and refusals, with how often.
    """

    tile_tokens: int | None
    kinds: tuple[KindReport, ...]
    peak_bytes: dict[Tier, int]
    moved_bytes: dict[Tier, int]
    device_peak_bytes: int | None
    lanes: dict[Lane, LaneReport]
    forwarded_bytes: int
    in_flight_peak_bytes: int
    attention: dict[str, str]
    notes: dict[str, int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _table(self)
        yield _peaks(self)
        yield from _lanes(self)
        yield from (f"attention: {kernel} for {shape}" for shape, kernel in self.attention.items())
        for note, times in self.notes.items():
            yield f"note ({times}x): {note}"

    def __str__(self) -> str:
        console = Console(width=120, no_color=True, force_terminal=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


def report(model: nn.Module, *, reset: bool = False) -> Report:
    """What a wrapped model did; `reset` lets the counts start anew.

    Raises:
        MemoError: for a model that is not wrapped.
    """
    runtime = runtime_of(model)
    result = _read(runtime)
    if reset:
        for count in runtime.counts.values():
            count.reset()
        runtime.store.reset_peaks()
        runtime.notes.clear()
    return result


def _read(runtime: Runtime) -> Report:
    kinds = tuple(_kind(runtime, kind) for kind in runtime.modes)
    counts = runtime.store.counts
    cuda = torch.cuda.is_available()
    return Report(
        tile_tokens=runtime.tile_tokens,
        kinds=kinds,
        peak_bytes={tier: count.peak_bytes for tier, count in counts.items()},
        moved_bytes={
            tier: count.moved_bytes for tier, count in counts.items() if tier != Tier.DEVICE
        },
        device_peak_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        lanes=_lane_reports(runtime),
        forwarded_bytes=sum(meter.forwarded_bytes for meter in _meters(runtime)),
        in_flight_peak_bytes=max((m.in_flight_peak_bytes for m in _meters(runtime)), default=0),
        attention={str(shape): choice.kernel for shape, choice in runtime.core.chosen.items()},
        notes=dict(runtime.notes),
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


def _table(report: Report) -> Table:
    table = Table(title=f"memo: tiles of {report.tile_tokens or '?'} tokens", title_justify="left")
    for name in (
        "layer class",
        "layers",
        "runs",
        "calls",
        "tiles kept / host / recomputed",
        "x and o",
        "stored",
    ):
        table.add_column(name, overflow="fold")
    for kind in report.kinds:
        table.add_row(
            kind.kind,
            str(kind.layers),
            "tiled" if kind.tiled else f"whole: {kind.reason}",
            str(kind.calls),
            " / ".join(str(kind.tiles.get(placement, 0)) for placement in Placement),
            _bytes(kind.skeletal_bytes),
            _bytes(kind.stored_bytes),
        )
    return table


def _peaks(report: Report) -> str:
    peaks = ", ".join(f"{tier} {decimal(size)}" for tier, size in report.peak_bytes.items())
    moved = ", ".join(f"to {tier} {decimal(size)}" for tier, size in report.moved_bytes.items())
    device = report.device_peak_bytes
    process = (
        f"; device memory of the process at its peak: {decimal(device)}"
        if device is not None
        else ""
    )
    return f"stored at the peak: {peaks}; moved: {moved}{process}"


def _lanes(report: Report) -> Iterator[str]:
    for name, lane in report.lanes.items():
        yield (
            f"{name}: {decimal(lane.moved_bytes)} in {lane.copies} copies, "
            f"busy {lane.busy_s:.3f} s, waited {lane.waited_s:.3f} s; "
            f"compute waited for it {lane.exposed_s:.3f} s"
        )
    if report.lanes:
        yield (
            f"forwarded: {decimal(report.forwarded_bytes)}; in flight at the peak: "
            f"{decimal(report.in_flight_peak_bytes)}"
        )


def _bytes(sizes: dict[Tier, int]) -> str:
    return ", ".join(f"{decimal(size)} {tier}" for tier, size in sizes.items()) or "0"
