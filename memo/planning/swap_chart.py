"""The swap plan: a column for each layer, the share of its tiles in each place, and where its input
`x` and attention's output `o` go.

Scope: what is drawn where; shapes are `svg.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memo.planning.picture import PLACED_IN
from memo.planning.svg import (
    AXIS,
    LEFT,
    PLOT,
    axis_up,
    chart,
    rect,
    stretch,
    ticks,
    words,
    x_of,
)
from planner.contracts import LayerSwap, Placement

_TILES, _HEAD, _ROW = 120.0, 8.0, 20.0
_MOST_NUMBERS = 16
_GAP = 0.08
"""Between layers, as a share of their width."""

PLACES = {
    Placement.KEEP: ("c2", "kept on the GPU"),
    Placement.HOST: ("c0", "host"),
    Placement.SSD: ("c6", "SSD"),
    Placement.RECOMPUTE: ("c4", "recomputed"),
}


def swap_chart(layers: Sequence[LayerSwap]) -> str:
    """Tiles of each layer, from the first to the last, with `x` and `o` below."""
    base, count = _HEAD + _TILES, len(layers)
    bottom = base + 2 * _ROW + 4

    def shapes() -> Iterator[str]:
        yield from axis_up(base, _TILES, 1.0, 2, "{:.0%}".format)
        for number, name in enumerate(("inputs x", "attention o")):
            yield words(LEFT - 6, base + number * _ROW + 18, name, "end")
        for index, layer in enumerate(layers):
            x, width = stretch(index + _GAP / 2, index + 1 - _GAP / 2, count)
            yield from _column(x, width, base, f"layer {index}", layer)
        yield from _numbers(bottom, count)

    return chart("swap", "Where each layer's tensors are", bottom + AXIS, shapes())


def _numbers(bottom: float, count: int) -> Iterator[str]:
    """Of layers, below the middles of their columns."""
    step = max(1, round(ticks(count, _MOST_NUMBERS)[1]))
    for index in range(0, count, step):
        yield words(x_of(index + 0.5, count), bottom + 15, str(index), "middle")
    yield words(LEFT + PLOT / 2, bottom + 30, "layers, in forward order", "middle title")


def _column(x: float, width: float, base: float, name: str, layer: LayerSwap) -> Iterator[str]:
    y = base
    for placement, (kind, where) in PLACES.items():
        if count := layer.tiles.get(placement, 0):
            tall = _TILES * layer.share(placement)
            y -= tall
            tip = f"{name}: {count} of {layer.tile_count} tiles {where}"
            yield rect(x, y, width, tall, kind, tip)
    for number, (what, tier) in enumerate((("input x", layer.x), ("attention o", layer.o))):
        kind, where = PLACES[PLACED_IN[tier]]
        tip = f"{name}: {what} {where}"
        yield rect(x, base + number * _ROW + 6, width, _ROW - 4, kind, tip)
