"""The layout of a planned step: a rectangle for each tensor, operations across, addresses up.

Scope: which tensors are drawn, and what each is, told by its name in `lives.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    x_of,
)
from planner.layout import Buffer, Layout, Problem
from planner.sizes import format_bytes

_HEIGHT, _HEAD = 460.0, 22.0

MOST_RECTANGLES = 4000
"""The largest are drawn. More would make a page of megabytes, and would not be seen."""

KINDS = {
    "kept ": ("c2", "kept tiles"),
    "x ": ("c5", "layer inputs"),
    "held ": ("c3", "attention outputs, held for backward"),
    "gradient for ": ("c6", "gradients of hidden states"),
    "gradient": ("c4", "gradients of parameters"),
    "in flight": ("c7", "in flight"),
}
"""By how a name begins; the first that fits counts."""

WITHIN = {" forward/": ("c0", "within a forward"), " backward/": ("c1", "within a backward")}
"""By what stands in the name of one that lives within a block."""

_REST = ("c7", "other")


def kind_of(name: str) -> tuple[str, str]:
    """A buffer's class of colour, and what it is."""
    for part, kind in WITHIN.items():
        if part in name:
            return kind
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), _REST)


def legend(problem: Problem) -> list[tuple[str, str]]:
    """Of what there is, once each."""
    found = {kind_of(buffer.id) for buffer in problem.buffers}
    return [kind for kind in (*WITHIN.values(), *KINDS.values(), _REST) if kind in found]


def layout_chart(problem: Problem, layout: Layout) -> str:
    """Each buffer from its birth to its end, at its address."""
    last = max((buffer.upper for buffer in problem.buffers), default=1)
    base, height = _HEAD + _HEIGHT, layout.height_bytes

    def shapes() -> Iterator[str]:
        yield from axis_up(base, _HEIGHT, height, 6, format_bytes)
        for buffer in drawn(problem):
            x, width = stretch(buffer.lower, buffer.upper, last)
            top = layout.offsets_bytes[buffer.id] + buffer.size_bytes
            y, tall = base - _HEIGHT * top / height, _HEIGHT * buffer.size_bytes / height
            kind, what = kind_of(buffer.id)
            yield rect(x, y, width, tall, kind, _tip(buffer, what, top - buffer.size_bytes))
        yield from _turn(problem, last, base)
        yield rule(LEFT, _HEAD, LEFT + PLOT, _HEAD, "limit")
        yield words(LEFT + PLOT, _HEAD - 8, f"arena: {format_bytes(height)}", "end strong")
        yield from axis_across(base, last, "traced operations, in order", "{:,.0f}".format)

    label = f"Layout of {len(problem.buffers):,} tensors in {format_bytes(height)}"
    return chart("layout", label, base + AXIS, shapes())


def drawn(problem: Problem) -> list[Buffer]:
    """The largest, in bytes times operations; the smallest of them last, so that none is hidden."""
    by_area = sorted(problem.buffers, key=lambda b: b.size_bytes * (b.lower - b.upper))
    return by_area[:MOST_RECTANGLES]


def _turn(problem: Problem, last: int, base: float) -> Iterator[str]:
    """Where backward begins."""
    turn = min((b.lower for b in problem.buffers if " backward/" in b.id), default=None)
    if turn is not None:
        x = x_of(turn, last)
        yield rule(x, _HEAD - 6, x, base, "turn")
        yield words(x - 6, _HEAD - 8, "forward", "end")
        yield words(x + 6, _HEAD - 8, "backward", "start")


def _tip(buffer: Buffer, what: str, offset: int) -> str:
    return (
        f"{buffer.id} ({what}): {format_bytes(buffer.size_bytes)} at {format_bytes(offset)}, "
        f"operations {buffer.lower:,} to {buffer.upper:,}"
    )
