"""Cutting heads into parts: each head once, and never slower than all of them together."""

from __future__ import annotations

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from memo.attention.heads import HeadPart, head_parts


def _rounds(part: HeadPart, batch: int, groups: int, threads: int) -> int:
    """Query heads that the busiest thread works through, one after the other."""
    kv_heads = part.kv[1] - part.kv[0]
    if part.spread:
        return ceil(batch * kv_heads * groups / threads)
    return ceil(batch * kv_heads / threads) * groups


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 8), st.integers(1, 33))
def test_parts_cover_the_heads_and_are_no_slower(
    batch: int, kv_heads: int, groups: int, threads: int
) -> None:
    parts = list(head_parts(batch, kv_heads, groups, threads))
    assert [h for part in parts for h in range(*part.kv)] == list(range(kv_heads))
    assert [h for part in parts for h in range(*part.q)] == list(range(kv_heads * groups))
    for part in parts:
        assert part.q == (part.kv[0] * groups, part.kv[1] * groups)
        assert not part.spread or part.kv[1] - part.kv[0] == 1
    whole = HeadPart((0, kv_heads * groups), (0, kv_heads))
    together = sum(_rounds(part, batch, groups, threads) for part in parts)
    assert together <= _rounds(whole, batch, groups, threads)
    if together == _rounds(whole, batch, groups, threads):
        assert parts == [whole]


def test_three_kv_heads_keep_two_threads_busy() -> None:
    assert list(head_parts(1, 3, 3, 2)) == [
        HeadPart((0, 6), (0, 2)),
        HeadPart((6, 9), (2, 3), spread=True),
    ]
    assert list(head_parts(1, 1, 8, 4)) == [HeadPart((0, 8), (0, 1), spread=True)]
    assert list(head_parts(2, 4, 3, 8)) == [HeadPart((0, 12), (0, 4))]
