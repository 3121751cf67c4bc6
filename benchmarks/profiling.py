"""Where one step's time goes, and what holds its memory at the peak, by torch's profiler.

Time is each operator's own, so that nothing counts twice. Memory is read from the profiler's tree
of events: every allocation hangs below the operator that made it; played in order of time, they
give the peak of torch's live bytes and what was alive then. Memory from before the step (weights,
gradients) is not in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch._C._profiler import _EventType
from torch.autograd import profiler_util
from torch.profiler import ProfilerActivity, profile

from benchmarks.contracts import Hotspot, Profile

MICROSECOND_S = 1e-6
LISTED = 25

# The first group of which a part stands in the operator's name takes it.
GROUPS = (
    ("attention backward", ("attention_for_cpu_backward", "attention_backward")),
    ("attention forward", ("attention",)),
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn")),
    ("copies and casts", ("aten::copy_", "aten::cat", "aten::clone", "aten::_to_copy")),
    ("allocation and filling", ("aten::empty", "aten::fill_", "aten::zero_", "aten::resize_")),
    ("softmax and loss", ("softmax", "nll_loss", "logsumexp", "cross_entropy")),
    ("embedding", ("embedding", "index")),
    (
        "elementwise",
        ("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::neg", "silu", "gelu", "pow"),
    ),
    ("elementwise", ("aten::rsqrt", "aten::exp", "aten::sigmoid", "aten::where", "aten::square")),
    ("reductions", ("aten::mean", "aten::sum", "aten::amax")),
)
OTHER_GROUP = "other"

# Below another operator these only make room for it.
ROOM_MAKERS = ("aten::empty", "aten::resize_", "aten::new_", "aten::zeros", "aten::_to_copy")


class Allocation(NamedTuple):
    """A block that came (`size_bytes` above 0) or went, and the operator that made it so."""

    time_ns: int
    address: int
    size_bytes: int
    owner: str


def profile_step(step: Callable[[], object]) -> Profile:
    """Run `step` once under the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    averages = [event for event in profiler.key_averages() if event.self_cpu_time_total > 0]
    assert profiler.profiler is not None
    kineto = profiler.profiler.kineto_results
    assert kineto is not None
    peak_bytes, holders = held_at_peak(list(allocations(kineto.experimental_event_tree())))
    return Profile(
        operators=operators(averages)[:LISTED],
        groups=groups(averages),
        holders=holders[:LISTED],
        total_self_s=sum(event.self_cpu_time_total for event in averages) * MICROSECOND_S,
        peak_bytes=peak_bytes,
    )


def operators(averages: list[profiler_util.FunctionEventAvg]) -> list[Hotspot]:
    """Every operator, the one that took most time first."""
    spots = [
        Hotspot(name=str(e.key), calls=e.count, self_s=e.self_cpu_time_total * MICROSECOND_S)
        for e in averages
    ]
    return sorted(spots, key=lambda spot: -spot.self_s)


def groups(averages: list[profiler_util.FunctionEventAvg]) -> list[Hotspot]:
    """The operators' times, added up by what kind of work they are."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in averages:
        group = group_of(str(event.key))
        seconds[group] += event.self_cpu_time_total * MICROSECOND_S
        calls[group] += event.count
    spots = [Hotspot(name=group, calls=calls[group], self_s=seconds[group]) for group in seconds]
    return sorted(spots, key=lambda spot: -spot.self_s)


def group_of(operator: str) -> str:
    for group, parts in GROUPS:
        if any(part in operator for part in parts):
            return group
    return OTHER_GROUP


def allocations(roots: list[Any]) -> Iterator[Allocation]:
    """Every block that came or went below `roots`, in no particular order."""
    waiting: list[tuple[Any, str, str]] = [(root, "forward", "") for root in roots]
    while waiting:
        event, node, operator = waiting.pop()
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            owner = f"{node}: {operator or '(no operator)'}"
            yield Allocation(event.start_time_ns, fields.ptr, fields.alloc_size, owner)
            continue
        if event.name.endswith("Backward") or event.name.endswith("Backward0"):
            node = event.name.rpartition(": ")[2]
        elif event.name.startswith("aten::") and not (
            operator and event.name.startswith(ROOM_MAKERS)
        ):
            operator = event.name
        waiting.extend((child, node, operator) for child in event.children)


def held_at_peak(events: list[Allocation]) -> tuple[int, list[Hotspot]]:
    """The highest sum of live bytes, and who had allocated them, by size, most bytes first."""
    events = sorted(events)
    peak_at = _index_of_peak(events)
    live: dict[int, Allocation] = {}
    for event in events[: peak_at + 1]:
        if event.size_bytes > 0:
            live[event.address] = event
        else:
            live.pop(event.address, None)
    counts = Counter((event.owner, event.size_bytes) for event in live.values())
    spots = [
        Hotspot(name=owner, calls=count, peak_bytes=count * size_bytes)
        for (owner, size_bytes), count in counts.items()
    ]
    spots.sort(key=lambda spot: -spot.peak_bytes)
    return sum(spot.peak_bytes for spot in spots), spots


def _index_of_peak(events: list[Allocation]) -> int:
    live: dict[int, int] = {}
    total = highest = 0
    peak_at = -1
    for index, event in enumerate(events):
        if event.size_bytes > 0:
            live[event.address] = event.size_bytes
            total += event.size_bytes
        else:
            total -= live.pop(event.address, 0)
        if total > highest:
            highest, peak_at = total, index
    return peak_at
