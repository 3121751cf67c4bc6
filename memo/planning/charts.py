"""Charts over the time of a planned step: memory by tier, compute and lanes.

Scope: what is drawn where; shapes are `svg.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from memo.planning.svg import (
    AXIS,
    LEFT,
    PLOT,
    axis_across,
    axis_up,
    chart,
    rect,
    rule,
    stretch,
    words,
)
from planner.contracts import Lane, Tier
from planner.hardware import Hardware
from planner.schedule.contracts import Span
from planner.sizes import format_bytes

_ROW, _PANEL, _HEAD = 24.0, 150.0, 30.0

MOST_POINTS = 1500
"""Of a line: more than a screen is wide."""

_NARROW = 1 / 2000
"""Of the step: spans that follow each other and are shorter are drawn as one."""

_SHOWN_LIMIT = 3
"""A panel reaches up to the limit where that is this many times the peak at most."""

TIERS = {Tier.DEVICE: "GPU memory", Tier.HOST: "host memory", Tier.SSD: "SSD"}
LANES = {
    Lane.D2H: "to the host",
    Lane.H2D: "from the host",
    Lane.SSD_WRITE: "SSD write",
    Lane.SSD_READ: "SSD read",
}
LANE_LEGEND = (
    ("c0", "forward"),
    ("c1", "backward, with recomputation"),
    ("c7", "optimizer, other compute"),
    ("wait", "compute waits for a lane"),
    ("c2", "transfers"),
)

Points = Sequence[tuple[float, int]]


def limits_of(hardware: Hardware) -> dict[Tier, int]:
    """Each GPU's share of the machine, in bytes."""
    disks = 0 if hardware.disks is None else hardware.disks.total_bytes
    return {
        Tier.DEVICE: hardware.device_bytes,
        Tier.HOST: hardware.host_bytes // hardware.gpus,
        Tier.SSD: disks // hardware.gpus,
    }


# ---- memory ----


def memory_chart(memory: Mapping[Tier, Points], limits: Mapping[Tier, int], step_s: float) -> str:
    """A panel for each tier that holds something, in bytes over seconds."""
    used = [(tier, points) for tier, points in memory.items() if any(size for _, size in points)]
    height = _PANEL * len(used)
    label = "; ".join(_told(tier, points, limits[tier]) for tier, points in used)

    def shapes() -> Iterator[str]:
        for number, (tier, points) in enumerate(used):
            yield from _panel(number * _PANEL, tier, points, limits[tier], step_s)
        yield from axis_across(height, step_s, "seconds since the step began", "{:g}".format)

    return chart("memory", f"Memory over time: {label}", height + AXIS, shapes())


def _told(tier: Tier, points: Points, limit_bytes: int) -> str:
    peak = format_bytes(max(size for _, size in points))
    return f"{TIERS[tier]}: peak {peak} of {format_bytes(limit_bytes)}"


def _panel(
    top: float, tier: Tier, points: Points, limit_bytes: int, step_s: float
) -> Iterator[str]:
    peak, base, height = max(size for _, size in points), top + _PANEL, _PANEL - _HEAD
    is_near = peak <= limit_bytes <= _SHOWN_LIMIT * peak
    last = limit_bytes if is_near else peak
    yield words(LEFT, top + 19, _told(tier, points, limit_bytes), "start strong")
    yield from axis_up(base, height, last, 3, format_bytes)
    bars = _thinned(points, step_s)
    for (start, size), (stop, _) in zip(bars, [*bars[1:], (step_s, 0)], strict=True):
        x, width = stretch(start, stop, step_s)
        tip = f"{TIERS[tier]}: {format_bytes(size)} from {start:.4g} to {stop:.4g} s"
        yield rect(x, base - height * size / last, width, height * size / last, "c0 area", tip)
    if is_near:
        yield rule(LEFT, base - height, LEFT + PLOT, base - height, "limit")


def _thinned(points: Points, step_s: float) -> list[tuple[float, int]]:
    """At most `MOST_POINTS`, each the largest of its stretch of time."""
    if len(points) <= MOST_POINTS:
        return list(points)
    best: dict[int, tuple[float, int]] = {}
    for at, size in points:
        slot = min(MOST_POINTS - 1, int(at / step_s * MOST_POINTS))
        if slot not in best or size > best[slot][1]:
            best[slot] = at, size
    return [best[slot] for slot in sorted(best)]


# ---- lanes ----


def lane_chart(spans: Iterable[Span], step_s: float) -> str:
    """A row for compute and each lane; hatched where compute waits."""
    rows: dict[Lane | None, list[Span]] = {None: [], **{lane: [] for lane in Lane}}
    for span in spans:
        rows[None if span.is_wait else span.lane].append(span)
    height = _ROW * len(rows)

    def shapes() -> Iterator[str]:
        for number, (lane, found) in enumerate(rows.items()):
            yield words(LEFT - 6, number * _ROW + 16, _name(lane), "end")
            yield rule(LEFT, (number + 1) * _ROW, LEFT + PLOT, (number + 1) * _ROW)
            for span in _together(found, step_s * _NARROW):
                x, width = stretch(span.start_s, span.stop_s, step_s)
                yield rect(x, number * _ROW + 3, width, _ROW - 6, _kind(span), _tip(span))
        yield from axis_across(height, step_s, "seconds since the step began", "{:g}".format)

    return chart("lanes", "What compute and each lane do over time", height + AXIS, shapes())


def _name(lane: Lane | None) -> str:
    return "compute" if lane is None else LANES[lane]


def _kind(span: Span) -> str:
    if span.is_wait:
        return "wait"
    if span.lane is not None:
        return "c2 area"
    direction = span.name.rpartition(" ")[2]
    return {"forward": "c0", "backward": "c1"}.get(direction, "c7")


def _tip(span: Span) -> str:
    size = f", {format_bytes(span.size_bytes)}" if span.size_bytes else ""
    lane = "" if span.lane is None else f"{LANES[span.lane]}: "
    name = f"compute {span.name}" if span.is_wait else f"{lane}{span.name}"
    return f"{name}{size}, {span.start_s:.4g} to {span.stop_s:.4g} s"


def _together(spans: Sequence[Span], narrow_s: float) -> Iterator[Span]:
    """Spans in order; narrow ones of a kind that touch are drawn as one, which tells how many."""
    runs: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.start_s):
        if runs and _joins(runs[-1], span, narrow_s):
            runs[-1].append(span)
        else:
            runs.append([span])
    return (run[0] if len(run) == 1 else _joined(run) for run in runs)


def _joins(run: Sequence[Span], span: Span, narrow_s: float) -> bool:
    last = run[-1]
    is_same = (last.name, last.is_wait) == (span.name, span.is_wait)
    lengths = (last.stop_s - last.start_s, span.stop_s - span.start_s)
    is_long = span.stop_s - run[0].start_s > 2 * narrow_s
    return (
        is_same
        and max(lengths) < narrow_s
        and span.start_s - last.stop_s < narrow_s
        and not is_long
    )


def _joined(run: Sequence[Span]) -> Span:
    size = sum(span.size_bytes for span in run)
    first = run[0]
    return replace(first, name=f"{len(run)} x {first.name}", stop_s=run[-1].stop_s, size_bytes=size)
