"""Bytes on the wire: counted where `torch.distributed` is called, whoever calls it, and Ulysses'
formula.

Scope: `counted_exchanges`, which sees what a rank gives to all-to-alls, and the bytes that
DeepSpeed-Ulysses' exchange (arXiv 2309.14509, section 3.2) makes of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch import distributed as dist


@dataclass(slots=True)
class Exchanges:
    """All-to-alls of one rank, and the bytes that it sent to others."""

    calls: int = 0
    sent_bytes: int = 0


@contextmanager
def counted_exchanges() -> Iterator[Exchanges]:
    """Count what this rank gives to `torch.distributed.all_to_all_single` inside `with`. (DeepSpeed
    calls it within an operation of its own, which a dispatch mode would not see into.)
    """
    found, original = Exchanges(), dist.all_to_all_single
    with patch.object(dist, "all_to_all_single", _counting(found, original)):
        yield found


def _counting(found: Exchanges, original: Callable[..., Any]) -> Callable[..., Any]:
    def all_to_all_single(
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        own = _own_bytes(input, input_split_sizes, kwargs.get("group"))
        found.calls += 1
        found.sent_bytes += input.numel() * input.element_size() - own
        return original(output, input, output_split_sizes, input_split_sizes, **kwargs)

    return all_to_all_single


def _own_bytes(sent: Tensor, counts: Sequence[int] | None, group: Any) -> int:
    """What stays with this rank; without counts, parts are equal."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    rows = counts[rank] if counts else sent.shape[0] // ranks
    return rows * (sent.numel() // max(1, sent.shape[0])) * sent.element_size()


def ulysses_bytes(
    *, tokens: int, heads: int, kv_heads: int, head_dim: int, ranks: int, item_bytes: int
) -> int:
    """What all ranks together send in one exchange of q, k, v and o: each element of them, [tokens,
    heads, head_dim], but for the part of 1 / ranks that stays where it is. kv heads fewer than
    ranks go to every rank that computes with them, `ranks` copies in all.

    Raises:
        ValueError: for heads, or tokens, that do not divide evenly: the formula is of even shares.
    """
    for name, value in (("heads", heads), ("tokens", tokens)):
        if value % ranks:
            raise ValueError(f"{name} is {value}: takes a multiple of {ranks} ranks")
    copies = max(kv_heads, ranks)
    return 2 * (heads + copies) * head_dim * tokens * (ranks - 1) // ranks * item_bytes
