"""Extents of the spool: exact sizes, no two borrowers of one byte, old bytes before new ones."""

from __future__ import annotations

import random

import pytest

from ssd.contracts import Extent
from ssd.extents import Extents


def _take(extents: Extents, size_bytes: int) -> Extent:
    extent = extents.take(size_bytes)
    assert extent is not None
    return extent


def _ends(extent: Extent) -> tuple[int, int]:
    return extent.start, extent.stop


@pytest.mark.parametrize("seed", range(20))
def test_borrowers_never_share_a_byte_and_all_comes_back_in_one_stretch(seed: int) -> None:
    extents, rng = Extents(10_000), random.Random(seed)
    owners: list[int | None] = [None] * 10_000
    lent: dict[int, Extent] = {}
    for number in range(300):
        if lent and rng.random() < 0.5:
            extent = lent.pop(rng.choice(list(lent)))
            owners[extent.start : extent.stop] = [None] * extent.size_bytes
            extents.give_back(extent)
        elif (taken := extents.take(rng.randint(1, 900))) is not None:
            assert set(owners[taken.start : taken.stop]) == {None}, "somebody else's bytes"
            owners[taken.start : taken.stop] = [number] * taken.size_bytes
            lent[number] = taken
        assert extents.free_bytes == owners.count(None)
    for extent in lent.values():
        extents.give_back(extent)
    assert (extents.free_bytes, extents.largest_bytes) == (10_000, 10_000)
    assert _ends(_take(extents, 10_000)) == (0, 10_000)


def test_an_extent_has_the_size_asked_for() -> None:
    extents = Extents(100)
    assert [_ends(_take(extents, size)) for size in (7, 1, 13)] == [(0, 7), (7, 8), (8, 21)]


def test_what_was_given_back_last_is_lent_first() -> None:
    extents = Extents(100)
    parts = [_take(extents, 10) for _ in range(6)]
    for index in (0, 4, 2):  # none touches another
        extents.give_back(parts[index])
    starts = [_take(extents, 10).start for _ in range(3)]
    assert starts == [20, 40, 0]


def test_new_bytes_are_lent_only_when_no_old_ones_fit() -> None:
    extents = Extents(100)
    first, _, third = (_take(extents, 10) for _ in range(3))
    extents.give_back(first)
    extents.give_back(third)
    assert _take(extents, 8).stop <= 30
    assert _take(extents, 9).stop <= 30
    assert _take(extents, 20).stop > 30


def test_old_bytes_at_the_end_and_new_ones_after_them_make_one_extent() -> None:
    extents = Extents(100)
    keep, last = _take(extents, 40), _take(extents, 40)
    extents.give_back(last)
    assert extents.largest_bytes == 60
    whole = _take(extents, 60)
    assert _ends(whole) == (40, 100)
    assert extents.free_bytes == 0
    extents.give_back(whole)
    extents.give_back(keep)
    assert extents.largest_bytes == 100


def test_without_room_there_is_no_extent_and_nothing_is_lost() -> None:
    extents = Extents(30)
    parts = [_take(extents, 10) for _ in range(3)]
    extents.give_back(parts[0])
    extents.give_back(parts[2])
    assert extents.take(11) is None
    assert (extents.free_bytes, extents.largest_bytes) == (20, 10)
    extents.give_back(parts[1])
    assert _ends(_take(extents, 30)) == (0, 30)


def test_what_is_not_lent_is_not_taken_back() -> None:
    extents = Extents(100)
    extent = _take(extents, 10)
    extents.give_back(extent)
    for wrong in (extent, Extent(5, 3), Extent(50, 10)):
        with pytest.raises(ValueError, match="not lent"):
            extents.give_back(wrong)
    assert extents.free_bytes == 100
