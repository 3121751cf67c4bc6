"""Shapes of a chart as SVG: rectangles, words, axes with round numbers, and the frame around them.

Scope: geometry and text. Colours are classes that `page_style.py` gives a colour each, in the light
and in the dark. What a rectangle is stands in its `data-tip`, which the page shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from html import escape

WIDTH = 1000.0
LEFT = 92.0
"""Of the plot: names and numbers stand left of it."""

_RIGHT = 22.0
PLOT = WIDTH - LEFT - _RIGHT
AXIS = 34.0
"""Below a plot: the numbers of the axis across, and its title."""

_NARROWEST = 0.4
_WORD_RISE = 4.0
"""From the middle of a line of text to where it stands."""


def x_of(at: float, whole: float) -> float:
    """Where `at` lies across a plot that shows `[0, whole]`."""
    return LEFT + PLOT * at / whole if whole else LEFT


def stretch(start: float, stop: float, whole: float) -> tuple[float, float]:
    """Where `[start, stop)` begins and how wide it is; never too narrow to be seen."""
    x = x_of(start, whole)
    return x, max(_NARROWEST, x_of(stop, whole) - x)


def rect(x: float, y: float, width: float, height: float, kind: str, tip: str) -> str:
    place = f'x="{_short(x)}" y="{_short(y)}" width="{_short(width)}" height="{_short(height)}"'
    return f'<rect {place} class="{kind}" data-tip="{escape(tip)}"/>'


def words(x: float, y: float, text: str, kind: str = "start") -> str:
    """Text whose `start`, `middle` or `end` is at `x`."""
    return f'<text x="{_short(x)}" y="{_short(y)}" class="{kind}">{escape(text)}</text>'


def rule(x: float, y: float, to_x: float, to_y: float, kind: str = "grid") -> str:
    place = f'x1="{_short(x)}" y1="{_short(y)}" x2="{_short(to_x)}" y2="{_short(to_y)}"'
    return f'<line {place} class="{kind}"/>'


def ticks(last: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 and zeros) from 0 to `last`, `most` above 0 at most."""
    if last <= 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(last / most))
    step = next(power * n for n in (1, 2, 5, 10, 20) if last / (power * n) <= most)
    return [step * n for n in range(math.floor(last / step + 1e-9) + 1)]


def axis_across(
    base: float, last: float, title: str, show: Callable[[float], str]
) -> Iterator[str]:
    """Numbers below a plot that ends at `base`, and what they are."""
    for at in ticks(last, 8):
        x = x_of(at, last)
        yield rule(x, base, x, base + 4, "axis")
        yield words(x, base + 15, show(at), "middle")
    yield rule(LEFT, base, LEFT + PLOT, base, "axis")
    yield words(LEFT + PLOT / 2, base + 30, title, "middle title")


def axis_up(
    base: float, height: float, last: float, most: int, show: Callable[[float], str]
) -> Iterator[str]:
    """Numbers left of a plot from `base` up, with a line across at each."""
    for at in ticks(last, most):
        y = base - height * at / last if last else base
        yield rule(LEFT, y, LEFT + PLOT, y)
        yield words(LEFT - 6, y + _WORD_RISE, show(at), "end")


def chart(name: str, label: str, height: float, shapes: Iterator[str]) -> str:
    """The frame; `label` says what is drawn to those who do not see it."""
    box = f'viewBox="0 0 {WIDTH:.0f} {height:.0f}"'
    return (
        f'<svg id="{name}" {box} role="img" aria-label="{escape(label)}" tabindex="0">'
        f"{''.join(shapes)}</svg>"
    )


def _short(value: float) -> str:
    """Two digits behind the point, no zeros at the end: a page has thousands of these."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
