"""Stripes: each byte of the spool has one place, and the files are just large enough."""

from __future__ import annotations

import random

import pytest

from ssd.stripes import cut, shares


@pytest.mark.parametrize("files", [1, 2, 3, 5])
@pytest.mark.parametrize("size_bytes", [1, 63, 64, 65, 448, 1000])
def test_each_byte_has_one_place_and_files_have_no_others(size_bytes: int, files: int) -> None:
    sizes = shares(size_bytes, block_bytes=64, files=files)
    assert sum(sizes) == size_bytes
    places = [
        (stripe.file_index, stripe.offset_bytes + at)
        for stripe in cut(0, size_bytes, block_bytes=64, files=files)
        for at in range(stripe.size_bytes)
    ]
    assert sorted(places) == [(i, at) for i, size in enumerate(sizes) for at in range(size)]


@pytest.mark.parametrize("seed", range(10))
def test_an_extent_is_cut_as_the_whole_spool_is(seed: int) -> None:
    rng = random.Random(seed)
    start, size_bytes = rng.randrange(500), rng.randrange(1, 500)
    whole = [
        (stripe.file_index, stripe.offset_bytes + at)
        for stripe in cut(0, 1000, block_bytes=48, files=3)
        for at in range(stripe.size_bytes)
    ]
    position = 0
    for stripe in cut(start, size_bytes, block_bytes=48, files=3):
        assert stripe.position_bytes == position
        assert 0 < stripe.size_bytes <= 48
        for at in range(stripe.size_bytes):
            place = stripe.file_index, stripe.offset_bytes + at
            assert place == whole[start + position + at]
        position += stripe.size_bytes
    assert position == size_bytes


def test_neighbouring_blocks_lie_on_different_disks() -> None:
    stripes = list(cut(0, 6 * 64, block_bytes=64, files=3))
    assert [stripe.file_index for stripe in stripes] == [0, 1, 2, 0, 1, 2]
