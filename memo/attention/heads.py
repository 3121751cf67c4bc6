"""Cutting heads into parts: for a kernel that knows no shared kv heads, and to keep all of a CPU's
threads busy.

Scope: arithmetic. A part whose one kv head is *spread* is given to the kernel as that many heads as
share it. torch's CPU flash kernel runs its backward in parallel over batch and kv heads only
(`cpu_flash_attention_backward` in ATen/native/cpu/FlashAttentionKernel.cpp), so 3 kv heads on 2
threads take as long as 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from memo.attention.masks import Range


@dataclass(frozen=True, slots=True)
class HeadPart:
    """Query heads `[q)` and the kv heads `[kv)` that they share; `spread`: one kv head, expanded
    without a copy.
    """

    q: Range
    kv: Range
    spread: bool = False


def head_parts(batch: int, kv_heads: int, groups: int, threads: int) -> Iterator[HeadPart]:
    """The parts that finish first. `groups` query heads share a kv head; `threads` run in
    parallel.
    """

    def rounds(together: int) -> int:
        spread = (kv_heads - together) * ceil(batch * groups / threads)
        return ceil(batch * together / threads) * groups + spread

    # On a tie the fewest parts: the most heads together.
    together = min(range(kv_heads, -1, -1), key=rounds)
    if together:
        yield HeadPart((0, together * groups), (0, together))
    yield from spread_heads(together, kv_heads, groups)


def spread_heads(first: int, stop: int, groups: int) -> Iterator[HeadPart]:
    """One part for each kv head in `[first, stop)`."""
    for head in range(first, stop):
        yield HeadPart((head * groups, (head + 1) * groups), (head, head + 1), spread=True)
