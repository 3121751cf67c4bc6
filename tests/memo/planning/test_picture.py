"""Plans drawn in letters."""

from __future__ import annotations

import pytest

from memo.planning.picture import HEIGHT, column, picture
from planner.contracts import LayerSwap, Placement, Tier

K, H, S, R = Placement.KEEP, Placement.HOST, Placement.SSD, Placement.RECOMPUTE


def _letters(tiles: dict[Placement, int]) -> str:
    return "".join(letter for letter, _ in column(LayerSwap(tiles=tiles)))


@pytest.mark.parametrize(
    ("tiles", "letters"),
    [
        ({K: 5}, "KKKKKKKK"),
        ({K: 1, R: 1}, "KKKKrrrr"),
        ({K: 1, R: 99}, "Krrrrrrr"),
        ({K: 97, H: 1, S: 1, R: 1}, "KKKKKHSr"),
        ({H: 1, R: 2}, "HHHrrrrr"),
    ],
)
def test_a_column_shows_shares(tiles: dict[Placement, int], letters: str) -> None:
    assert _letters(tiles) == letters
    assert len(letters) == HEIGHT


def test_a_picture_has_all_layers_in_pieces_of_the_width() -> None:
    layers = [LayerSwap(tiles={K: 1}, x=Tier.HOST, o=Tier.SSD)] * 5
    lines = [line.plain for line in picture(layers, 3)]
    assert lines[0] == "layers 0 to 2"
    assert lines[1] == " tiles KKK"
    assert lines[HEIGHT + 1 : HEIGHT + 3] == ["     x HHH", "     o SSS"]
    assert lines[HEIGHT + 3] == "layers 3 to 4"
    assert lines[-2:] == ["     x HH", "     o SS"]
