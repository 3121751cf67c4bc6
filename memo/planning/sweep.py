"""The same request at several lengths, and with several numbers of GPUs.

Scope: `tokens=32K..4M` and `gpus=1..8`, and a table of what comes of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from memo.planning.figures import wear_of
from memo.planning.making import make
from memo.planning.request import PlanRequest, check_shared
from memo.planning.show import states_text
from planner.contracts import Tier
from planner.plan import NoPlan, Plan
from planner.sizes import format_bytes, format_tokens, parse_token_range, parse_tokens

_WORDS = ("bound by", "states")
_TAKES = (
    "takes tokens=32K..4M or gpus=1..8 (doubled from one to the other), or tokens=32K,100K; each "
    "once"
)


@dataclass(frozen=True, slots=True)
class Swept:
    """What is swept over; `gpus` empty: the node's alone."""

    tokens: tuple[int, ...]
    gpus: tuple[int, ...] = ()


def parse_sweeps(texts: Sequence[str], name: str = "sweep") -> Swept:
    """`tokens=32K..4M`, or `tokens=32K,100K`, and beside it, if wanted, `gpus=1..8`.

    Raises:
        ValueError: for anything else; opens with `name`.
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        what, equals, values = (part.strip() for part in text.partition("="))
        if what not in ("tokens", "gpus") or what in found or not equals or not values:
            raise ValueError(f"{name} is {text!r}: {_TAKES}")
        found[what] = _values(values, text, name, is_count=what == "gpus")
    if "tokens" not in found:
        raise ValueError(f"{name} has no tokens: {_TAKES}")
    return Swept(found["tokens"], found.get("gpus", ()))


def _values(values: str, text: str, name: str, *, is_count: bool) -> tuple[int, ...]:
    """Numbers of GPUs have no unit."""
    if is_count and not values.replace("..", "").replace(",", "").replace(" ", "").isdigit():
        raise ValueError(f"{name} is {text!r}: {_TAKES}")
    if ".." in values:
        return parse_token_range(values, name)
    return tuple(parse_tokens(value, name) for value in values.split(","))


def sweep(
    request: PlanRequest, lengths: Sequence[int], gpus: Sequence[int] = ()
) -> Iterator[Plan | NoPlan]:
    """A plan for each length and number of GPUs (none: the node's), without its layout or the
    longest one that fits.

    Raises:
        ValueError: for a length with fewer tokens than GPUs that must share them, before any plan
            is made.
    """
    nodes = [
        request if count == request.ranks else with_gpus(request, count)
        for count in gpus or (request.ranks,)
    ]
    least = min(lengths, default=request.tokens)
    for one in (node for node in nodes if not node.compare_degrees):
        check_shared(least, one.sequence_parallel, "tokens of a sweep")
    return (_swept(one, tokens) for tokens in lengths for one in nodes)


def _swept(request: PlanRequest, tokens: int) -> Plan | NoPlan:
    degree = request.sequence_parallel if tokens >= request.sequence_parallel else 1
    return make(_brief(request, tokens, degree)).result


def _brief(request: PlanRequest, tokens: int, degree: int) -> PlanRequest:
    return replace(
        request,
        tokens=tokens,
        sequence_parallel=degree,
        find_longest=False,
        lay_out=False,
    )


def neighbours(request: PlanRequest) -> Iterator[Plan | NoPlan]:
    """A quarter, a half, twice and four times as many tokens, then half and twice as many GPUs."""
    tokens, ranks = request.tokens, request.ranks
    yield from sweep(request, [n for n in (tokens // 4, tokens // 2) if n >= ranks])
    yield from sweep(request, [2 * tokens, 4 * tokens])
    for gpus in (ranks // 2, 2 * ranks):
        if gpus and tokens >= gpus:
            yield from sweep(with_gpus(request, gpus), [tokens])


def with_gpus(request: PlanRequest, gpus: int) -> PlanRequest:
    """On a node with so many GPUs; host and disks stay. All share a sequence where all did, and
    where degrees are compared; else as many as were asked for, if they divide.
    """
    hardware = request.node.hardware
    link = hardware.link_bytes_per_s or hardware.d2h_bytes_per_s  # over PCIe, where there is none
    node = replace(
        request.node,
        hardware=replace(hardware, gpus=gpus, link_bytes_per_s=link if gpus > 1 else None),
    )
    return replace(
        request,
        node=node,
        sequence_parallel=_sharing(request, gpus),
        zero=request.zero if gpus > 1 else None,
    )


def _sharing(request: PlanRequest, gpus: int) -> int:
    if request.compare_degrees or request.sequence_parallel == request.ranks:
        return gpus
    return math.gcd(request.sequence_parallel, gpus)


def sweep_table(results: Sequence[Plan | NoPlan]) -> Table:
    """A line for each; `share`: GPUs that share a sequence."""
    table = Table(box=None, padding=(0, 2))
    memory = ("each GPU", "node's host", "node's SSD", "SSD a day")
    names = ("tokens", "GPUs", "share", "step s", "MFU", "tokens/s", *memory, *_WORDS)
    for name in names:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for result in results:
        work = result.workload
        counts = str(work.ranks), str(work.sequence_parallel)
        table.add_row(format_tokens(work.tokens), *counts, *_cells(result))
    return table


def _cells(result: Plan | NoPlan) -> list[str]:
    work = result.workload
    if isinstance(result, NoPlan):
        more = ", ".join(
            f"{format_bytes(size * (1 if tier is Tier.DEVICE else work.ranks))} more of {tier}"
            for tier, size in result.missing_bytes.items()
            if size is not None
        )
        return ["does not fit", *[""] * 6, more, ""]
    told, gpus = result.predictions, result.hardware.gpus
    peaks = {tier: told.peak_bytes.get(tier, 0) for tier in Tier}
    node = {tier: size * (1 if tier is Tier.DEVICE else gpus) for tier, size in peaks.items()}
    sizes = [format_bytes(size) for size in node.values()]
    sizes.append(format_bytes(wear_of(result).bytes_per_day))
    speed = [f"{told.step_s:,.3g}", f"{told.mfu:.1%}", f"{told.tokens_per_s:,.0f}"]
    return [*speed, *sizes, ", ".join(told.binding), states_text(result.workload)]
