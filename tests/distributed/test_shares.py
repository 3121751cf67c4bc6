"""Who gets which tokens and heads: all of them, once, evenly, and with as few copies as can be."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo.parallel.contracts import HeadShares, SequenceGroup, TokenShares
from memo.parallel.shares import (
    heads_degree,
    runs_of,
    share_axes,
    share_heads,
    share_tokens,
    unit_tokens,
)


@given(st.integers(1, 5000), st.integers(1, 16), st.integers(1, 300))
def test_tokens_are_shared_in_whole_units(total: int, ranks: int, unit: int) -> None:
    shares = share_tokens(total, ranks, unit)
    assert (shares.ranks, shares.total_tokens) == (ranks, total)
    assert sum(shares.tokens) == total
    assert all(stop % unit == 0 or stop == total for _, stop in map(shares.of, range(ranks)))
    assert max(shares.tokens) <= -(-total // unit // ranks) * unit + unit
    assert max(shares.tokens) - min(shares.tokens) < 2 * unit


def test_fewer_units_than_ranks_leave_the_last_ranks_without_tokens() -> None:
    assert share_tokens(9, 4, 4).tokens == (4, 4, 1, 0)


@given(st.integers(1, 64), st.integers(0, 10**6))
def test_units_leave_no_rank_without_tokens_and_shares_even(ranks: int, more: int) -> None:
    total = ranks + more
    unit = unit_tokens(total, ranks)
    tokens = share_tokens(total, ranks, unit).tokens
    assert min(tokens) >= 1
    assert max(tokens) <= -(-total // ranks) + unit
    assert unit == 1 or 16 * unit * ranks <= total
    assert 128 % unit == 0


def _partitions(heads: int, ranks: int) -> list[tuple[tuple[int, int], ...]]:
    return [tuple(pairwise((0, *cuts, heads))) for cuts in combinations(range(1, heads), ranks - 1)]


def _copies(cut: tuple[tuple[int, int], ...], groups: int) -> int:
    return sum(len({head // groups for head in range(*own)}) for own in cut)


@pytest.mark.parametrize(("kv_heads", "groups"), [(3, 3), (1, 7), (5, 2), (8, 1), (2, 5), (3, 4)])
def test_no_other_shares_are_better(kv_heads: int, groups: int) -> None:
    heads = kv_heads * groups
    for ranks in range(1, heads + 1):
        shares = share_heads(heads, kv_heads, ranks)
        most = -(-heads // ranks)
        fair = [c for c in _partitions(heads, ranks) if max(b - a for a, b in c) == most]
        assert shares.q in fair
        assert shares.kv_copies == min(_copies(cut, groups) for cut in fair)


def test_smollm2_over_ranks() -> None:
    assert share_heads(9, 3, 3).kv_copies == 3
    assert share_heads(9, 3, 2).q == ((0, 4), (4, 9))
    assert share_heads(9, 3, 2).kv == ((0, 2), (1, 3))
    assert share_heads(9, 3, 8).kv_copies == 8


@given(st.integers(1, 6), st.integers(1, 6), st.data())
@settings(max_examples=60)
def test_runs_are_groups_that_kernels_take(kv_heads: int, groups: int, data: st.DataObject) -> None:
    heads = kv_heads * groups
    ranks = data.draw(st.integers(1, heads))
    shares = share_heads(heads, kv_heads, ranks)
    for rank in range(ranks):
        assert _kv_of_queries(shares, rank) == [head // groups for head in range(*shares.q[rank])]


def _kv_of_queries(shares: HeadShares, rank: int) -> list[int]:
    """The kv head of each query head of a rank, as a kernel takes a run."""
    found = []
    for run in runs_of(shares, rank):
        together, rest = divmod(run.q[1] - run.q[0], run.kv[1] - run.kv[0])
        assert rest == 0
        for head in range(*run.kv):
            found += [shares.kv[rank][0] + head] * together
    return found


@pytest.mark.parametrize(
    ("ranks", "heads", "degree"), [(8, 9, 8), (8, 4, 4), (8, 2, 2), (6, 4, 3), (7, 5, 1), (4, 1, 1)]
)
def test_as_many_ranks_exchange_heads_as_there_are_heads_for(
    ranks: int, heads: int, degree: int
) -> None:
    assert heads_degree(ranks, heads) == degree


@pytest.mark.parametrize(("ranks", "degree"), [(8, 2), (8, 4), (12, 2), (24, 4)])
def test_rows_see_as_many_keys_under_a_causal_mask(ranks: int, degree: int) -> None:
    axes = share_axes(ranks, degree)
    assert sorted(rank for row in axes.rows for rank in row) == list(range(ranks))
    work = [sum(rank + 0.5 for rank in row) for row in axes.rows]
    assert min(work) == max(work)
    for row, members in enumerate(axes.rows):
        assert list(members) == sorted(members)
        assert [axes.place(rank) for rank in members] == [(row, at) for at in range(degree)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: share_tokens(0, 2), "total_tokens is 0"),
        (lambda: share_tokens(5, 0), "ranks is 0"),
        (lambda: share_tokens(5, 2, 0), "unit_tokens is 0"),
        (lambda: unit_tokens(3, 4), "3 tokens for 4 ranks"),
        (lambda: share_heads(9, 2, 2), "9 query heads on 2 kv heads"),
        (lambda: share_heads(4, 2, 5), "5 ranks for 4 query heads"),
        (lambda: heads_degree(8, 4, 3), "heads_degree is 3"),
        (lambda: heads_degree(8, 4, 8), "heads_degree is 8"),
    ],
)
def test_what_cannot_be_shared_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rank_of_a_group_of_all_is_its_global_rank() -> None:
    assert SequenceGroup(None, 1, 4).global_rank(3) == 3
    assert TokenShares((0, 3, 3)).tokens == (3, 0)
