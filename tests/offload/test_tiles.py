"""Cutting, spreading and joining: every token once, every fraction as near as whole tiles allow."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offload import Joined, Placement, Tile, split_tokens, spread_placements
from offload.tiles import tile_of


@given(st.integers(1, 400), st.integers(1, 450))
def test_tiles_cover_every_token_once_in_order(total: int, step: int) -> None:
    tiles = split_tokens(total, step)
    covered = [token for tile in tiles for token in range(tile.start, tile.stop)]
    assert covered == list(range(total))
    assert [tile.index for tile in tiles] == list(range(len(tiles)))
    assert {tile.tokens for tile in tiles[:-1]} <= {step}
    assert 0 < tiles[-1].tokens <= step


@st.composite
def _fractions(draw: st.DrawFn) -> dict[Placement, float]:
    weights = draw(
        st.dictionaries(st.sampled_from(list(Placement)), st.integers(1, 1000), min_size=1)
    )
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}


@given(st.integers(1, 200), _fractions())
def test_placements_are_as_many_as_the_fractions_say(
    count: int, fractions: dict[Placement, float]
) -> None:
    placements = spread_placements(count, fractions)
    assert len(placements) == count
    errors = [abs(placements.count(kind) - share * count) for kind, share in fractions.items()]
    assert sum(errors) <= _least_error(count, fractions) + 1e-6


def _least_error(count: int, fractions: dict[Placement, float]) -> float:
    """The least sum of distances between whole numbers that sum to `count` and the fractions."""
    kinds = list(fractions)
    choices = product(
        *[(int(fractions[kind] * count), int(fractions[kind] * count) + 1) for kind in kinds]
    )
    return min(
        sum(abs(n - fractions[kind] * count) for n, kind in zip(choice, kinds, strict=True))
        for choice in choices
        if sum(choice) == count
    )


@given(st.integers(1, 200), _fractions())
def test_placements_are_spread_evenly(count: int, fractions: dict[Placement, float]) -> None:
    placements = spread_placements(count, fractions)
    for stop in range(1, count + 1):
        for kind in fractions:
            due = placements.count(kind) * stop / count
            assert abs(placements[:stop].count(kind) - due) < len(Placement)


def test_placements_of_a_known_case() -> None:
    fractions = {Placement.HOST: 0.25, Placement.RECOMPUTE: 0.75}
    found = spread_placements(8, fractions)
    assert found.count(Placement.HOST) == 2
    hosts = [index for index, kind in enumerate(found) if kind is Placement.HOST]
    assert hosts[1] - hosts[0] == 4


@settings(deadline=None)
@given(st.integers(1, 23), st.integers(1, 9), st.sampled_from([1, 2]), st.randoms())
def test_parts_joined_in_any_order_are_the_whole(
    total: int, step: int, dim: int, random: object
) -> None:
    assert hasattr(random, "shuffle")
    whole = torch.randn(2, total, 3) if dim == 1 else torch.randn(2, 3, total, 4)
    tiles, joined = list(split_tokens(total, step)), Joined(total, dim=dim)
    random.shuffle(tiles)
    for tile in tiles:
        joined.write(tile, tile_of(whole, tile, dim))
    assert torch.equal(joined.value(), whole)


def test_added_parts_are_summed_and_the_first_is_not_written_over() -> None:
    tile, first = Tile(0, 0, 5), torch.ones(1, 5, 2)
    joined = Joined(5)
    joined.add(tile, first)
    joined.add(tile, first * 2)
    assert torch.equal(joined.value(), torch.full((1, 5, 2), 3.0))
    assert torch.equal(first, torch.ones(1, 5, 2))


def test_tiles_that_were_not_written_are_zero() -> None:
    tiles = split_tokens(7, 3)
    joined = Joined(7)
    assert joined.value_or_none(tiles) is None
    joined.add(tiles[1], torch.ones(2, 3, 4))
    joined.add(tiles[1], torch.ones(2, 3, 4))
    found = joined.value_or_none(tiles)
    assert found is not None
    assert found.sum((0, 2)).tolist() == [0, 0, 0, 16, 16, 16, 0]


def test_heads_lie_as_projections_write_them() -> None:
    joined = Joined(5, dim=2)
    for tile in split_tokens(5, 2):
        joined.write(tile, torch.zeros(2, 3, tile.tokens, 4))
    assert joined.value().transpose(1, 2).is_contiguous()


def test_a_join_of_nothing_is_refused() -> None:
    with pytest.raises(AssertionError, match="no tile"):
        Joined(3).value()
