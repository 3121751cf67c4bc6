"""A swap plan drawn in text: a column for each layer, from the first to the last.

Scope: letters and colours. The height of a letter is the share of the layer's tiles that is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from planner.contracts import LayerSwap, Placement, Tier

HEIGHT = 8

LETTERS = {
    Placement.KEEP: ("K", "green"),
    Placement.HOST: ("H", "cyan"),
    Placement.SSD: ("S", "magenta"),
    Placement.RECOMPUTE: ("r", "yellow"),
}
PLACED_IN = {
    Tier.DEVICE: Placement.KEEP,
    Tier.HOST: Placement.HOST,
    Tier.SSD: Placement.SSD,
}
"""What lies in a tier is drawn as tiles that are placed there."""

LEGEND = "K kept on the GPU, H host, S SSD, r recomputed; x: layer inputs, o: attention outputs"


def picture(layers: Sequence[LayerSwap], width: int) -> Iterator[Text]:
    """Lines of `width` layers at most: tiles from the top down, then x and o."""
    for start in range(0, len(layers), width):
        part = layers[start : start + width]
        yield Text(f"layers {start} to {start + len(part) - 1}")
        columns = [column(layer) for layer in part]
        for row in range(HEIGHT):
            yield _line("tiles" if not row else "", [letters[row] for letters in columns])
        yield _line("x", [LETTERS[PLACED_IN[layer.x]] for layer in part])
        yield _line("o", [LETTERS[PLACED_IN[layer.o]] for layer in part])


def column(layer: LayerSwap) -> list[tuple[str, str]]:
    """Letters with their colours, one for each of `HEIGHT` shares, whose number is rounded so that
    they add up; what has tiles has a letter, as long as there are enough.
    """
    held = [p for p in Placement if layer.tiles.get(p, 0)]
    exact = {p: layer.share(p) * HEIGHT for p in held}
    counts = {p: max(1, int(exact[p])) for p in held}
    while sum(counts.values()) < HEIGHT:
        counts[max(held, key=lambda p: exact[p] - counts[p])] += 1
    while sum(counts.values()) > HEIGHT:
        counts[min((p for p in held if counts[p] > 1), key=lambda p: exact[p] - counts[p])] -= 1
    return [LETTERS[p] for p in held for _ in range(counts[p])]


def _line(name: str, letters: Sequence[tuple[str, str]]) -> Text:
    line = Text(f"{name:>6} ")
    for letter, colour in letters:
        line.append(letter, colour)
    return line
