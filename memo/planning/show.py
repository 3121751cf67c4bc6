"""A plan as a terminal shows it.

Scope: tables and sentences.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from memo.planning.figures import STORED, Wear, placement_shares, wear_of
from memo.planning.picture import LEGEND, picture
from planner.contracts import Tier, Workload
from planner.plan import NoPlan, Plan
from planner.sizes import format_bytes, format_tokens

_INDENT = 8
_MANY_DAYS = 10
Rows = Iterator[tuple[str, str]]


def shown(result: Plan | NoPlan, console: Console) -> RenderableType:
    """A plan, or why there is none, for the console's width."""
    parts: list[RenderableType] = [_verdict(result), _grid(_asked(result))]
    if isinstance(result, Plan):
        parts += [_peaks(result), _grid(_speed(result))]
        parts += [Text(), *picture(result.swap.layers, max(16, console.width - _INDENT))]
        parts += [Text(LEGEND, style="dim"), Text()]
    else:
        parts.append(_grid(_missing(result)))
    return Group(*parts, *(Text(f"note: {note}", style="dim") for note in result.notes))


def _verdict(result: Plan | NoPlan) -> Text:
    work = result.workload
    what = f"{work.model}, {format_tokens(work.tokens)} tokens, {_node(result)}"
    return (
        Text(f"fits: {what}", style="bold green")
        if isinstance(result, Plan)
        else Text(f"does not fit: {what}", style="bold red")
    )


def _node(result: Plan | NoPlan) -> str:
    return f"{result.hardware.gpus} x {result.hardware.device}"


def _grid(rows: Rows) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _asked(result: Plan | NoPlan) -> Rows:
    work = result.workload
    yield "model", f"{work.parameters:,} parameters, {work.layer_count} layers, {work.dtype}"
    yield "training", f"{work.train}, {states_text(work)}, batch {work.batch}"
    if work.ranks > 1:
        groups = work.ranks // work.sequence_parallel
        yield "sequence", f"over {work.sequence_parallel} GPUs, {groups} at a time"


def states_text(work: Workload) -> str:
    """How model states are divided, and where the optimizer's are."""
    zero = f"ZeRO {work.zero}" if work.ranks > 1 else "one GPU"
    place = {"none": "on the GPU", "host": "on the host", "ssd": "on the SSD"}
    return f"{zero}, optimizer {place[work.offload_optimizer]}"


def _peaks(plan: Plan) -> Table:
    table = Table(title=None, box=None, padding=(0, 2))
    for name in ("peak of each GPU", "planned", "of", "node"):
        table.add_column(name, justify="left" if name == "peak of each GPU" else "right")
    hardware, peaks = plan.hardware, plan.predictions.peak_bytes
    disks = 0 if hardware.disks is None else hardware.disks.total_bytes
    budgets = {
        Tier.DEVICE: hardware.device_bytes,
        Tier.HOST: hardware.host_bytes // hardware.gpus,
        Tier.SSD: disks // hardware.gpus,
    }
    for tier, name in ((Tier.DEVICE, "GPU memory"), (Tier.HOST, "host memory"), (Tier.SSD, "SSD")):
        peak = peaks.get(tier, 0)
        node = "" if tier is Tier.DEVICE else format_bytes(peak * hardware.gpus)
        table.add_row(name, format_bytes(peak), format_bytes(budgets[tier]), node)
    return table


def _speed(plan: Plan) -> Rows:
    told, wear = plan.predictions, wear_of(plan)
    exposed = sum(told.exposed_s.values())
    yield (
        "step",
        f"{told.step_s:,.4g} s, of which {told.recompute_s:,.3g} s recompute and "
        + (f"{exposed:,.3g} s wait for transfers"),
    )
    yield "speed", f"{told.tokens_per_s:,.0f} tokens/s, MFU {told.mfu:.1%}"
    yield "bound by", ", ".join(told.binding) or "not told"
    yield "tiles", f"{plan.swap.tile_tokens:,} tokens each; " + _shares(plan)
    if plan.swap.stored in STORED:
        yield "attention", STORED[plan.swap.stored]
    if plan.hardware.disks is not None:
        yield "SSD wear", _wear(wear)
    if told.arena_bytes is not None and told.arena_lower_bound_bytes is not None:
        above = told.arena_bytes / max(1, told.arena_lower_bound_bytes) - 1
        yield (
            "layout",
            f"{format_bytes(told.arena_bytes)} for activations and gradients, "
            + (
                f"{above:.1%} above the least that can be; PyTorch's allocator would reserve "
                f"{format_bytes(told.reserved_bytes or 0)}"
            ),
        )
    if told.longest_tokens is not None:
        yield "longest", _longest(told.longest_tokens)


def _wear(wear: Wear) -> str:
    if not wear.bytes_per_day:
        return "none: nothing is written"
    written = f"{format_bytes(wear.bytes_per_day)} a day written by the node"
    return written if wear.days is None else f"{written}; its disks last {_days(wear.days)}"


def _days(days: float) -> str:
    return f"{days:,.0f} days" if days >= _MANY_DAYS else f"{days:.2g} days"


def _shares(plan: Plan) -> str:
    shares = placement_shares(plan.swap)
    return ", ".join(f"{share:.0%} {place}" for place, share in shares.items() if share)


_MORE = {
    Tier.DEVICE: ("GPU memory", "on each GPU"),
    Tier.HOST: ("host memory", "on the node"),
    Tier.SSD: ("SSD space", "on the node"),
}


def _missing(result: NoPlan) -> Rows:
    for tier, size in result.missing_bytes.items():
        name, where = _MORE[tier]
        gpus = 1 if tier is Tier.DEVICE else result.hardware.gpus
        more = "no amount of it alone makes it fit" if size is None else ""
        yield name, more or f"{format_bytes(size * gpus if size else 0)} more {where} would do"
    yield "binding", ", ".join(_MORE[tier][0] for tier in result.binding) or "no budget alone"
    if result.longest_tokens is not None:
        yield "longest", _longest(result.longest_tokens)


def _longest(tokens: int) -> str:
    """It is looked for without layouts, of which a shorter one may have none that fits."""
    fit = f"{format_tokens(tokens)} tokens fit" if tokens else "no length fits"
    return f"{fit}, by simulated steps: their layouts were not sought"
