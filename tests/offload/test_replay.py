"""Random numbers and autocast: found again tile by tile, and the caller's left alone."""

from __future__ import annotations

import pytest
import torch

from offload import Replay, Tile
from offload.replay import AutocastState

CPU = torch.device("cpu")
TILES = [Tile(index, 2 * index, 2 * index + 2) for index in range(3)]


def test_a_layer_that_draws_nothing_moves_no_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    replay = Replay(CPU)
    for tile in TILES:
        with replay.first(tile):
            torch.ones(3)
    replay.advance()
    assert not replay.draws
    assert torch.equal(torch.get_rng_state(), before)


def test_tiles_draw_alike_again_and_unlike_each_other() -> None:
    replay = Replay(CPU)
    first = []
    for tile in TILES:
        with replay.first(tile):
            first.append(torch.rand(4))
    replay.advance()
    assert replay.draws
    assert len({tuple(numbers.tolist()) for numbers in first}) == len(TILES)
    torch.rand(5)
    for tile in reversed(TILES):
        with replay.again(tile):
            assert torch.equal(torch.rand(4), first[tile.index])


def test_layers_that_draw_draw_unlike_each_other() -> None:
    drawn = []
    for _ in range(2):
        replay = Replay(CPU)
        with replay.first(TILES[0]):
            drawn.append(torch.rand(4))
        replay.advance()
    assert not torch.equal(*drawn)


def test_the_callers_seed_decides() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with Replay(CPU).first(TILES[1]):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_callers_generator_survives_a_fault() -> None:
    before, replay = torch.get_rng_state(), Replay(CPU)

    def draw_and_fail() -> None:
        with replay.first(TILES[0]):
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("enabled", [False, True])
def test_autocast_is_as_it_was(enabled: bool) -> None:
    with torch.autocast("cpu", torch.float16, enabled=enabled):
        state = AutocastState.capture("cpu")
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=not enabled), state.restored():
        assert (ones @ ones).dtype is (torch.float16 if enabled else torch.float32)
