"""`memo plan --emulate-rank`: one rank of several, run alone on this machine.

Scope: from options to a request for this machine's device, so many times; the table of what was
predicted and measured. What is run is `emulate.py`'s.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.table import Table

from memo.measure import exact_malloc
from memo.planning.emulate import Emulation, emulate
from memo.planning.node import Node, NodeArguments, find_node
from memo.planning.request import PlanRequest, named_config, tokens_of
from planner.sizes import format_bytes

_MALLOC_BYTES = 64 << 10


def emulated(
    model: str,
    *,
    tokens: str,
    ranks: int | None,
    rank: int,
    dtype: str,
    tile_tokens: int | None,
) -> Emulation:
    """Run the work of `rank` of `ranks`.

    Raises:
        ValueError: for an argument that is not understood.
        MemoError: for a model that cannot be traced, or whose tokens cannot be shared.
    """
    if ranks is None:
        raise ValueError("--emulate-rank takes --sequence-parallel: how many ranks there would be")
    name, config = named_config(model)
    count = tokens_of(tokens)
    if not torch.cuda.is_available():
        exact_malloc(_MALLOC_BYTES)  # before anything large is allocated
    request = PlanRequest(
        name=name,
        config=config,
        tokens=count,
        node=_node(ranks, dtype),
        zero=0,
        offload_optimizer="none",
        sequence_parallel=ranks,
        dtype=dtype,
        tile_tokens=tile_tokens,
        find_longest=False,
        lay_out=False,
    )
    return emulate(request, rank)


def emulated_table(found: Emulation) -> Table:
    """Predicted beside measured."""
    shown = Table(
        title=f"rank {found.rank} of {found.ranks}: {found.tokens:,} tokens, tiles of "
        f"{found.tile_tokens:,}",
        caption=f"memory by {found.method}; sent to others {format_bytes(found.sent_bytes)}",
    )
    for name in ("", "predicted", "measured", "error"):
        shown.add_column(name, justify="right")
    memory = found.predicted_bytes / found.measured_bytes - 1
    shown.add_row(
        "gradients and activations",
        format_bytes(found.predicted_bytes),
        format_bytes(found.measured_bytes),
        f"{memory:+.1%}",
    )
    shown.add_row(
        "compute",
        f"{found.predicted_s:,.2f} s",
        f"{found.measured_s:,.2f} s",
        f"{found.predicted_s / found.measured_s - 1:+.1%}",
    )
    return shown


def _node(ranks: int, dtype: str) -> Node:
    """So many of this machine's device, which is measured (some seconds)."""
    node = find_node(NodeArguments(gpus=1, dtype=dtype))
    # What is sent is not timed here, but a plan of several ranks takes a link.
    link = node.hardware.link_bytes_per_s or node.hardware.d2h_bytes_per_s
    return replace(node, hardware=replace(node.hardware, gpus=ranks, link_bytes_per_s=link))
