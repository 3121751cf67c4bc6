"""The same request at several lengths.

Scope: `tokens=32K..4M`, and a table of what comes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.table import Table

from memo.planning.making import make
from memo.planning.request import PlanRequest
from memo.planning.show import states_text
from planner.contracts import NoPlan, Plan, Tier
from planner.sizes import format_bytes, format_tokens, parse_token_range, parse_tokens

_WORDS = ("bound by", "states")
_TAKES = "takes tokens=32K..4M (doubled from one to the other), or tokens=32K,100K"


def swept_tokens(text: str, name: str = "sweep") -> tuple[int, ...]:
    """The lengths of `tokens=32K..4M` or `tokens=32K,100K`.

    Raises:
        ValueError: for anything else; opens with `name`.
    """
    what, equals, values = text.partition("=")
    if what.strip() != "tokens" or not equals or not values.strip():
        raise ValueError(f"{name} is {text!r}: {_TAKES}")
    if ".." in values:
        return parse_token_range(values, name)
    return tuple(parse_tokens(value, name) for value in values.split(","))


def sweep(request: PlanRequest, lengths: Sequence[int]) -> Iterator[Plan | NoPlan]:
    """A plan for each length, without its layout or the longest one that fits."""
    for tokens in lengths:
        brief = replace(request, tokens=tokens, find_longest=False, lay_out=False)
        yield make(brief).result


def neighbours(request: PlanRequest) -> Iterator[Plan | NoPlan]:
    """A quarter, a half, twice and four times as many tokens, then half and twice as many GPUs."""
    tokens, ranks = request.tokens, request.ranks
    yield from sweep(request, [n for n in (tokens // 4, tokens // 2) if n >= ranks])
    yield from sweep(request, [2 * tokens, 4 * tokens])
    for gpus in (ranks // 2, 2 * ranks):
        if gpus and tokens >= gpus:
            yield from sweep(with_gpus(request, gpus), [tokens])


def with_gpus(request: PlanRequest, gpus: int) -> PlanRequest:
    """On a node with so many GPUs, which all share a sequence; host and disks stay."""
    hardware = request.node.hardware
    link = hardware.link_bytes_per_s or hardware.d2h_bytes_per_s  # over PCIe, where there is none
    node = replace(
        request.node,
        hardware=replace(hardware, gpus=gpus, link_bytes_per_s=link if gpus > 1 else None),
    )
    return replace(
        request, node=node, sequence_parallel=gpus, zero=request.zero if gpus > 1 else None
    )


def sweep_table(results: Sequence[Plan | NoPlan]) -> Table:
    """A line for each."""
    table = Table(box=None, padding=(0, 2))
    names = ("tokens", "GPUs", "step s", "MFU", "tokens/s", "GPU", "host", "SSD", *_WORDS)
    for name in names:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for result in results:
        work = result.workload
        table.add_row(format_tokens(work.tokens), str(work.ranks), *_cells(result))
    return table


def _cells(result: Plan | NoPlan) -> list[str]:
    if isinstance(result, NoPlan):
        more = ", ".join(
            f"{format_bytes(size)} more of {tier}"
            for tier, size in result.missing_bytes.items()
            if size is not None
        )
        return ["does not fit", *[""] * 5, more, ""]
    told = result.predictions
    sizes = [format_bytes(told.peak_bytes.get(tier, 0)) for tier in Tier]
    speed = [f"{told.step_s:,.3g}", f"{told.mfu:.1%}", f"{told.tokens_per_s:,.0f}"]
    return [*speed, *sizes, ", ".join(told.binding), states_text(result.workload)]
