"""The GPU benchmark's results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.contracts import Shape
from benchmarks.gpu_plan import Setting
from benchmarks.gpu_rows import Claim, GpuRow
from benchmarks.limits import Longest
from benchmarks.tables import NONE, describe

GIB = 1 << 30

STEPS_CAPTION = (
    "Step: forward and backward of one sequence through the layers' body, no optimizer, after one "
    "step that doesn't count; median (range). MFU: model FLOPs (causal attention, backward twice "
    "forward, nothing for recomputation) over {rate} of bf16 matrix products measured on this card "
    "(over its data sheet's {peak}). Memory: peaks of torch's allocator; the host's is what lies "
    "there at the peak. Exposed: the share of the step in which compute waited for transfers. "
    "Speed: tokens a second over checkpointing with CPU offload of layer inputs."
)
LONGEST_CAPTION = (
    "Bisection on a real step, head and loss included (the peers' own whole logits, but for alst), "
    "of two layers, with the memory of the others accounted for: weights and gradients, and what "
    "each holds for backward, allocated on the device; optimizer's states are elsewhere. Attention "
    "runs in pieces of {pieces:,} tokens, which hold the same memory. Host: the longest of which "
    "all layers' share lies within {host}, by what a layer took in the longest probe."
)


def steps(
    setting: Setting, rows: Sequence[GpuRow], rate: float | None, peak: float | None
) -> Table:
    """One line per case and length."""
    caption = STEPS_CAPTION.format(rate=_rate(rate), peak=_rate(peak))
    table = Table(title=_title(setting.shape), caption=caption, caption_justify="left")
    table.add_column("tokens")
    table.add_column("case", overflow="fold")
    for name in ("layers", "step s", "tokens/s", "speed", "MFU (sheet)"):
        table.add_column(name, justify="right")
    for name in ("allocated GiB", "reserved GiB", "host GiB", "exposed"):
        table.add_column(name, justify="right")
    table.add_column("note", overflow="fold")
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous is not None and previous.tokens != row.tokens:
            table.add_section()
        table.add_row(*_cells(row))
    return table


def _cells(row: GpuRow) -> list[str]:
    low, high = row.step_range_s or (0.0, 0.0)
    step = NONE if row.step_s is None else f"{row.step_s:.3f} ({low:.3f}-{high:.3f})"
    return [
        f"{row.tokens:,}",
        row.case,
        _form(row.layers, "d"),
        step,
        _form(row.tokens_per_s, ",.0f"),
        _form(row.speedup, ".2f"),
        f"{_form(row.mfu, '.1%')} ({_form(row.data_sheet_mfu, '.1%')})",
        _gib(row.allocated_bytes),
        _gib(row.reserved_bytes),
        _gib(row.host_bytes),
        _form(row.exposed, ".1%"),
        row.note,
    ]


def longest(setting: Setting, found: Sequence[Longest], host_bytes: int) -> Table:
    """One line per case: what the device allows, what the host allows, and the less of them."""
    caption = LONGEST_CAPTION.format(
        pieces=setting.attention_tokens, host=f"{_gib(host_bytes)} GiB"
    )
    title = f"Longest sequence. {_title(setting.shape)}"
    table = Table(title=title, caption=caption, caption_justify="left")
    table.add_column("case", overflow="fold")
    for name in ("device fits", "device fails at", "host fits", "trains", "bound by"):
        table.add_column(name, justify="right")
    table.add_column("note", overflow="fold")
    for item in found:
        table.add_row(
            item.case,
            f"{item.fits_tokens:,}",
            _form(item.fails_tokens, ",d"),
            _form(item.host_tokens, ",d"),
            f"{item.trains_tokens:,}",
            item.bound,
            item.error,
        )
    return table


def claims(found: Sequence[Claim]) -> Table:
    """What was promised beside what was measured."""
    table = Table(title="Promised and measured")
    table.add_column("what")
    for name in ("promised", "measured", "holds"):
        table.add_column(name, justify="right")
    for claim in found:
        promised = f"at least {claim.least}" if claim.least is not None else f"below {claim.most}"
        holds = {None: NONE, True: "yes", False: "no"}[claim.holds]
        table.add_row(claim.text, promised, _form(claim.measured, ".3f"), holds)
    return table


def _title(shape: Shape) -> str:
    return describe(shape).partition(";")[0]


def _form(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _gib(value_bytes: int | None) -> str:
    return NONE if value_bytes is None else f"{value_bytes / GIB:,.2f}"


def _rate(flops_per_s: float | None) -> str:
    return "an unknown rate" if flops_per_s is None else f"{flops_per_s / 1e12:,.1f} TFLOP/s"
