"""Bytes that memo sends for heads of any number: counted, beside Ulysses' formula.

Scope: one small layer, forward and backward, for several numbers of heads, on the same ranks; times
are not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor
from torch import distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

import memo
from benchmarks.ulysses_ranks import Say, results
from benchmarks.ulysses_wire import counted_exchanges
from memo.parallel.shares import share_heads, share_sequence

HEADS = ((8, 8), (8, 4), (8, 2), (9, 3), (12, 1))
"""Query and kv heads: plain, grouped, fewer kv heads than ranks, uneven, one for all."""

TOKENS, HEAD_DIM, VOCAB, ITEM_BYTES = 203, 8, 64, 4

_TIMES = {"q": 3, "k": 3, "v": 3, "o": 3}
"""How often a step sends each: forward; for backward again; and its gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsRow:
    """Bytes that all ranks sent for a layer with so many heads, and what they should be."""

    ranks: int
    heads: int
    kv_heads: int
    counted_bytes: int
    formula_bytes: int


def measured(ranks: int, *, limit_s: float) -> list[HeadsRow]:
    """A row for each of `HEADS`.

    Raises:
        RankError: when a rank fails.
    """
    by_rank = results(count, ranks, HEADS, limit_s=limit_s)
    return [
        HeadsRow(
            ranks=ranks,
            heads=heads,
            kv_heads=kv_heads,
            counted_bytes=sum(counts[index] for counts in by_rank),
            formula_bytes=formula_bytes(heads, kv_heads, ranks),
        )
        for index, (heads, kv_heads) in enumerate(HEADS)
    ]


def count(say: Say, every: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes that this rank sends to others, for each number of heads."""
    del say
    found = []
    for heads, kv_heads in every:
        model = _layer(heads, kv_heads)
        memo.wrap(model, sequence_parallel=dist.get_world_size())
        ids = torch.arange(TOKENS).unsqueeze(0) % VOCAB
        with counted_exchanges() as exchanges:
            loss: Tensor = model(input_ids=ids, labels=ids).loss
            loss.backward()
        found.append(exchanges.sent_bytes)
    return found


def _layer(heads: int, kv_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=heads * HEAD_DIM,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    model.train()
    return model


def formula_bytes(heads: int, kv_heads: int, ranks: int) -> int:
    """Ulysses' volume (arXiv 2309.14509, section 3.2) where shares are uneven: a head of a token
    travels to every rank that computes with it and does not have the token.
    """
    tokens = share_sequence(TOKENS, ranks).tokens
    shares = share_heads(heads, kv_heads, ranks)
    owners = {"q": shares.q, "k": shares.kv, "v": shares.kv, "o": shares.q}
    pairs = sum(
        _TIMES[name] * (stop - start) * (TOKENS - tokens[rank])
        for name, ranges in owners.items()
        for rank, (start, stop) in enumerate(ranges)
    )
    return pairs * HEAD_DIM * ITEM_BYTES


def table(rows: Sequence[HeadsRow]) -> Table:
    """A line for each number of heads."""
    shown = Table(
        title=f"memo, one layer, {TOKENS} tokens, head size {HEAD_DIM}, float32: sent by all ranks",
        caption="formula: every head of a token to each rank that computes with it",
    )
    for name in ("ranks", "heads", "kv heads", "counted", "formula", "difference"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            str(row.ranks),
            str(row.heads),
            str(row.kv_heads),
            f"{row.counted_bytes:,}",
            f"{row.formula_bytes:,}",
            f"{row.counted_bytes - row.formula_bytes:+,}",
        )
    return shown
