"""Dealing what groups of layers get, and laying it over tiles."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from planner.swap.groups import deal, spread


@given(
    hands=st.integers(1, 9),
    hand_size=st.integers(1, 12),
    cuts=st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_all_is_dealt_in_even_hands(hands: int, hand_size: int, cuts: list[float]) -> None:
    total = hands * hand_size
    edges = [0, *sorted(round(cut * total) for cut in cuts), total]
    totals = {name: b - a for name, a, b in zip("abcd", edges, edges[1:], strict=False)}
    dealt = deal(totals, "a", hands)
    assert [sum(hand.values()) for hand in dealt] == [hand_size] * hands
    summed: Counter[str] = Counter()
    for number, hand in enumerate(dealt, start=1):
        summed.update(hand)
        assert summed["a"] * hands <= number * totals["a"]
    assert summed == Counter(totals)


@given(counts=st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any))
def test_placements_are_spread_evenly(counts: list[int]) -> None:
    totals = dict(zip("abcd", counts, strict=False))
    order = spread(totals)
    assert Counter(order) == Counter(totals)
    for length in range(1, len(order) + 1):
        for kind, total in totals.items():
            due = total * length / len(order)
            assert abs(order[:length].count(kind) - due) < len(totals)


def test_the_spread_is_the_runtimes() -> None:
    from offload import Placement
    from offload.tiles import spread_placements

    counts = {Placement.HOST: 5, Placement.RECOMPUTE: 7, Placement.KEEP: 1}
    shares = {kind: count / 13 for kind, count in counts.items()}
    assert tuple(spread(counts)) == spread_placements(13, shares)
