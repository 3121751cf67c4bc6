"""Who gets which tokens, which heads, and which place on the two axes.

Scope: arithmetic, the same on every rank. What it gives is plain data of `contracts.py`.
"""

from __future__ import annotations

from memo.attention.masks import Range
from memo.parallel.contracts import Axes, HeadRun, HeadShares, TokenShares


def share_tokens(total_tokens: int, ranks: int, unit_tokens: int = 1) -> TokenShares:
    """Shares as even as whole units of `unit_tokens` allow; the last that is not empty ends with
    the sequence. With fewer units than ranks, the last ranks have no tokens.

    Raises:
        ValueError: for a number below 1.
    """
    for name, value in (
        ("total_tokens", total_tokens),
        ("ranks", ranks),
        ("unit_tokens", unit_tokens),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}: it takes 1 or more")
    units = -(-total_tokens // unit_tokens)
    each, more = divmod(units, ranks)
    ends = [rank * each + min(rank, more) for rank in range(ranks + 1)]
    return TokenShares(tuple(min(end * unit_tokens, total_tokens) for end in ends))


_MAX_UNIT_TOKENS = 128
"""Kernels' blocks are of 64 or 128 rows."""

_UNITS_PER_RANK = 16
"""Shares differ by a unit at most, and so by a sixteenth of one."""


def unit_tokens(total_tokens: int, ranks: int) -> int:
    """In units of how many tokens a sequence is shared: a power of two, so that tiles of shares are
    alike, and so few that shares are even and none is empty.

    Raises:
        ValueError: for fewer tokens than ranks.
    """
    if total_tokens < ranks:
        raise ValueError(f"{total_tokens} tokens for {ranks} ranks: takes a token a rank at least")
    most = max(1, total_tokens // (ranks * _UNITS_PER_RANK))
    return min(_MAX_UNIT_TOKENS, 1 << (most.bit_length() - 1))


def share_sequence(total_tokens: int, ranks: int) -> TokenShares:
    """Shares of a sequence in its units; the first is as long as any.

    Raises:
        ValueError: for fewer tokens than ranks.
    """
    return share_tokens(total_tokens, ranks, unit_tokens(total_tokens, ranks))


def share_heads(heads: int, kv_heads: int, ranks: int) -> HeadShares:
    """Neighbouring heads for every rank, at least one: first the fewest query heads on the rank
    with the most, since attention's time is theirs; then the fewest copies of kv heads; then the
    most even.

    Raises:
        ValueError: when query heads are no multiple of kv heads, or fewer than ranks.
    """
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} query heads on {kv_heads} kv heads: takes a multiple of them")
    if not 1 <= ranks <= heads:
        raise ValueError(f"{ranks} ranks for {heads} query heads: takes 1 rank a head at most")
    groups = heads // kv_heads
    q = _cheapest_cut(heads, groups, ranks)
    kv = tuple((start // groups, (stop - 1) // groups + 1) for start, stop in q)
    return HeadShares(q, kv, groups)


Cost = tuple[int, int]
"""Copies of kv heads, and the sum of squares of query heads."""


def _cheapest_cut(heads: int, groups: int, ranks: int) -> tuple[Range, ...]:
    """By dynamic programming: `best[n]` is the cheapest way to give the first n heads away."""
    most = -(-heads // ranks)
    best: dict[int, tuple[Cost, tuple[Range, ...]]] = {0: ((0, 0), ())}
    for rank in range(ranks):
        left = ranks - rank - 1
        longer: dict[int, tuple[Cost, tuple[Range, ...]]] = {}
        for start, (cost, cut) in best.items():
            for stop in range(start + 1, min(start + most, heads - left) + 1):
                more = (_copies(start, stop, groups), (stop - start) ** 2)
                total = (cost[0] + more[0], cost[1] + more[1])
                if stop not in longer or total < longer[stop][0]:
                    longer[stop] = (total, (*cut, (start, stop)))
        best = longer
    return best[heads][1]


def _copies(start: int, stop: int, groups: int) -> int:
    return (stop - 1) // groups + 1 - start // groups


def runs_of(shares: HeadShares, rank: int) -> tuple[HeadRun, ...]:
    """A rank's heads, counted from its first, by runs of kv heads with as many query heads."""
    (q_first, q_stop), (kv_first, kv_stop) = shares.q[rank], shares.kv[rank]
    runs: list[HeadRun] = []
    for head in range(kv_first, kv_stop):
        start = max(q_first, head * shares.groups) - q_first
        stop = min(q_stop, (head + 1) * shares.groups) - q_first
        run, kv = (start, stop), (head - kv_first, head - kv_first + 1)
        if runs and _groups(runs[-1]) == stop - start:
            before = runs.pop()
            run, kv = (before.q[0], stop), (before.kv[0], kv[1])
        runs.append(HeadRun(run, kv))
    return tuple(runs)


def _groups(run: HeadRun) -> int:
    return (run.q[1] - run.q[0]) // (run.kv[1] - run.kv[0])


def heads_degree(ranks: int, heads: int, asked: int | None = None) -> int:
    """How many ranks exchange heads for tokens; the other axis, along the sequence, has the rest.

    As many as there are query heads for, when none is asked for: an exchange moves fewer bytes
    than passing k and v round.

    Raises:
        ValueError: for a degree that does not divide `ranks`, or that is more than `heads`.
    """
    if asked is None:
        return max(n for n in range(1, min(ranks, heads) + 1) if ranks % n == 0)
    if not 1 <= asked <= heads or ranks % asked:
        raise ValueError(
            f"heads_degree is {asked}: it takes a divisor of {ranks} ranks, up to {heads} heads"
        )
    return asked


def share_axes(ranks: int, degree: int) -> Axes:
    """Rows of `degree` ranks, dealt forth and back: (0, 7), (1, 6), (2, 5), (3, 4).

    Under a causal mask late tokens see more keys than early ones, and so every row has of both. It
    is even for an even degree; with one rank a row, the last has about twice the mean.
    """
    rows = ranks // degree
    deal = [
        tuple(turn * rows + (row if turn % 2 == 0 else rows - 1 - row) for turn in range(degree))
        for row in range(rows)
    ]
    return Axes(tuple(deal))
