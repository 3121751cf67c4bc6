"""The comparison as tables.

Scope: presenting rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.ulysses_case import Peer, UlyssesCase
from benchmarks.ulysses_rows import MAX_MEMORY_RATIO, MAX_TIME_RATIO, PeerRow, StageRow
from planner.sizes import format_bytes

ALST_HAS = (
    "ALST: Ulysses around SDPA, tiled MLP, tiled loss, reentrant checkpointing (its offload moves "
    "nothing on a processor), loss weighted by ranks' tokens; both: DeepSpeed's engine, plain SGD"
)


def comparison(case: UlyssesCase, rows: Sequence[StageRow]) -> Table:
    """Three lines per stage, and what memo is of ALST."""
    table = Table(
        title=f"{case.tokens:,} tokens over {case.ranks} gloo ranks, {case.layers} layers of "
        f"{case.hidden}, {case.heads} heads, {case.kv_heads} kv, {case.dtype}",
        caption=f"{ALST_HAS}. To be met: step {MAX_TIME_RATIO}, peak {MAX_MEMORY_RATIO}",
    )
    for name in ("ZeRO", "", "step", "CPU, all ranks", "peak above the engine's", "of ALST"):
        table.add_column(name, justify="right")
    for name in ("gradient error", "scale", "error rescaled", "worst"):
        table.add_column(name, justify="right")
    for index, row in enumerate(rows):
        ratio = f"step {row.time_ratio:.2f}, peak {row.memory_ratio:.2f}"
        if index == 0 or rows[index - 1].zero != row.zero:
            table.add_row(*_cells(row.zero, row.alst, ""))
        is_last = index + 1 == len(rows) or rows[index + 1].zero != row.zero
        table.add_row(*_cells(row.zero, row.memo, ratio), end_section=is_last)
    return table


def _cells(zero: int, row: PeerRow, ratio: str) -> tuple[str, ...]:
    return (
        str(zero),
        str(row.peer),
        f"{row.step_s:,.2f} s",
        f"{row.cpu_s:,.1f} s",
        format_bytes(row.growth_bytes),
        ratio,
        f"{row.gradient_error:.1e}",
        f"{row.gradient_scale:.4f}",
        f"{row.gradient_error_rescaled:.1e}",
        row.gradient_worst,
    )


def wire(case: UlyssesCase, rows: Sequence[StageRow]) -> Table:
    """Bytes that were counted beside Ulysses' formula."""
    table = Table(
        title="sent by all ranks for one layer, forward and backward",
        caption="counted at torch.distributed's all-to-all; formula: arXiv 2309.14509, section "
        "3.2: (ranks - 1) / ranks of q, k, v and o each time they are exchanged (memo: forward, "
        "backward with o's gradient, gradients; ALST: forward, again under its checkpoint, "
        "gradients), kv heads fewer than ranks once per rank",
    )
    for name in ("ZeRO", "", "counted", "formula", "difference"):
        table.add_column(name, justify="right")
    for stage in rows:
        for row in (stage.alst, stage.memo) if stage.memo.peer is Peer.MEMO else (stage.memo,):
            difference = row.layer_bytes - row.formula_bytes
            table.add_row(
                str(stage.zero),
                str(row.peer),
                f"{row.layer_bytes:,.0f}",
                f"{row.formula_bytes:,}",
                f"{difference:+,.0f}",
            )
    return table
