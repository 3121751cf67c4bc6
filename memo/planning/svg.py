"""Charts of a planned step as SVG: memory over time, lanes, and the layout.

Scope: geometry and text. What a shape is stands in its `data-tip`, which the page shows on hover.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from planner.contracts import Lane, Tier
from planner.layout import Layout, Problem
from planner.schedule.contracts import Span
from planner.sizes import format_bytes

WIDTH = 1000.0
_LEFT = 110.0
_PLOT = WIDTH - _LEFT
_ROW, _MEMORY, _LAYOUT = 22.0, 110.0, 420.0

MOST_RECTANGLES = 4000
"""Of a layout; the largest are drawn. More would make a page of many megabytes."""

MOST_POINTS = 1500
"""Of a line: more than a screen is wide."""

_COLOURS: Mapping[Lane | None, str] = {
    None: "#4c78a8",
    Lane.D2H: "#f58518",
    Lane.H2D: "#e45756",
    Lane.SSD_WRITE: "#72b7b2",
    Lane.SSD_READ: "#54a24b",
}

Points = Sequence[tuple[float, int]]


def memory_chart(memory: Mapping[Tier, Points], step_s: float) -> str:
    """A panel for each tier that holds something."""
    used = [(tier, points) for tier, points in memory.items() if any(size for _, size in points)]
    height = _MEMORY * len(used)
    panels = (_panel(n, tier, points, step_s) for n, (tier, points) in enumerate(used))
    return _svg("memory", height, "".join(panels))


def _panel(number: int, tier: Tier, points: Points, step_s: float) -> str:
    top, peak = number * _MEMORY, max(size for _, size in points)
    base = top + _MEMORY - 14
    scale = (_MEMORY - 30) / max(1, peak)
    shapes = [_text(4, top + 24, f"{tier}, peak"), _text(4, top + 40, format_bytes(peak))]
    bars = _thinned(points, step_s)
    for (start, size), (stop, _) in zip(bars, [*bars[1:], (step_s, 0)], strict=True):
        tip = f"{tier}: {format_bytes(size)} at {start:.4g} s"
        shapes.append(_bar(start, stop, step_s, base - size * scale, size * scale, tip))
    return "".join(shapes)


def _bar(start: float, stop: float, step_s: float, y: float, height: float, tip: str) -> str:
    x, width = _x(start, step_s), _x(stop, step_s) - _x(start, step_s)
    return _rect(x, y, max(width, 0.5), max(height, 0.0), _COLOURS[None], tip)


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


def lane_chart(spans: Iterable[Span], step_s: float) -> str:
    """A row for compute and each lane; hatched where compute waits."""
    tracks = [None, *Lane]
    shapes = [
        _text(4, row * _ROW + 15, "compute" if track is None else str(track))
        for row, track in enumerate(tracks)
    ]
    for span in spans:
        row = 0 if span.is_wait else tracks.index(span.lane)
        x, width = _x(span.start_s, step_s), _x(span.stop_s, step_s) - _x(span.start_s, step_s)
        colour = "#bbbbbb" if span.is_wait else _COLOURS[span.lane]
        size = f", {format_bytes(span.size_bytes)}" if span.size_bytes else ""
        tip = f"{span.name}{size}: {span.start_s:.4g} to {span.stop_s:.4g} s"
        shapes.append(_rect(x, row * _ROW + 3, max(width, 0.4), _ROW - 6, colour, tip))
    return _svg("lanes", _ROW * len(tracks), "".join(shapes))


def layout_chart(problem: Problem, layout: Layout) -> str:
    """Time across, address up."""
    last = max((buffer.upper for buffer in problem.buffers), default=1)
    scale = (_LAYOUT - 20) / max(1, layout.height_bytes)
    shapes = [_text(4, 14, format_bytes(layout.height_bytes)), _text(4, _LAYOUT - 6, "0")]
    shapes += _rectangles(problem, layout, last, scale)
    return _svg("layout", _LAYOUT, "".join(shapes))


def _rectangles(problem: Problem, layout: Layout, last: int, scale: float) -> Iterator[str]:
    largest = sorted(
        problem.buffers, key=lambda b: b.size_bytes * (b.upper - b.lower), reverse=True
    )
    for number, buffer in enumerate(largest[:MOST_RECTANGLES]):
        x, width = _x(buffer.lower, last), _x(buffer.upper, last) - _x(buffer.lower, last)
        offset, height = layout.offsets_bytes[buffer.id], buffer.size_bytes * scale
        tip = (
            f"{buffer.id}: {format_bytes(buffer.size_bytes)} at {offset:,}, operations "
            f"{buffer.lower:,} to {buffer.upper:,}"
        )
        colour = f"hsl({number * 47 % 360} 55% 60%)"
        yield _rect(x, _LAYOUT - 10 - offset * scale - height, width, height, colour, tip)


def _x(at: float, whole: float) -> float:
    return _LEFT + _PLOT * at / whole if whole else _LEFT


def _rect(x: float, y: float, width: float, height: float, colour: str, tip: str) -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect {place} fill="{colour}" data-tip="{escape(tip)}"/>'


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'


def _svg(name: str, height: float, shapes: str) -> str:
    return f'<svg id="{name}" viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="100%">{shapes}</svg>'
