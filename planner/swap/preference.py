"""Which of several steps is taken, where some are hardly longer than the shortest.

Scope: the rule that the program (`solving.py`) keeps within one step, over steps that it does not
compare: other bytes in flight, other places of model states, other numbers of GPUs to a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Effort:
    """What a step takes, or a token of it: seconds, and bytes written to the SSD. `least_s`: what
    no plan of the same costs can beat.
    """

    seconds: float
    written_bytes: float
    least_s: float


def preferred(candidates: Sequence[T], effort: Callable[[T], Effort], tolerance: float) -> T:
    """Of those that take at most `tolerance` more, relatively, than the fastest: the one that
    writes least, and of these the fastest, the first of equals.

    Raises:
        ValueError: without candidates.
    """
    if not candidates:
        raise ValueError("candidates is empty: takes one or more")
    efforts = [effort(candidate) for candidate in candidates]
    most_s = min(one.seconds for one in efforts) * (1 + tolerance)
    pairs = [pair for pair in zip(candidates, efforts, strict=True) if pair[1].seconds <= most_s]
    return min(pairs, key=lambda pair: (pair[1].written_bytes, pair[1].seconds))[0]


def may_be_preferred(bound_s: float, than: Effort, tolerance: float) -> bool:
    """Whether a candidate that takes `bound_s` or longer is worth a look beside one that is known:
    it may be faster by more than the tolerance, both at their fastest, or write less.
    """
    if than.written_bytes:
        return bound_s <= than.seconds * (1 + tolerance)
    return bound_s * (1 + tolerance) < than.least_s
