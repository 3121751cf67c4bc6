"""Is a layout valid? Answered by a sweep over time that shares nothing with any solver.

Scope: reading a problem and a layout, and saying everything that is wrong. It sorts, bisects and
compares neighbours, in bytes and in the problem's own time; it neither places nor repairs.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from planner.layout.contracts import Buffer, Layout, Problem

_Stretch = tuple[int, int, str]
"""First byte, end, and the id of the buffer there."""


def violations(problem: Problem, layout: Layout) -> list[str]:
    """Return what is wrong with `layout`, one line each; nothing when it is valid.

    Valid: every buffer of the problem and no other has an offset, which is not negative and a
    multiple of its alignment; no two buffers that live at one moment share a byte; the height is
    the highest end, sizes rounded up to the problem's granularity.
    """
    found = _wrong_names(problem, layout)
    if found:
        return found
    return [
        *_wrong_offsets(problem, layout),
        *_shared_bytes(problem, layout),
        *_wrong_height(problem, layout),
    ]


def _wrong_names(problem: Problem, layout: Layout) -> list[str]:
    wanted = {buffer.id for buffer in problem.buffers}
    given = set(layout.offsets_bytes)
    missing = [f"buffer {name} has no offset" for name in sorted(wanted - given)]
    return missing + [f"{name} is no buffer of the problem" for name in sorted(given - wanted)]


def _wrong_offsets(problem: Problem, layout: Layout) -> list[str]:
    found = []
    for buffer in problem.buffers:
        offset = layout.offsets_bytes[buffer.id]
        for alignment in (problem.alignment_bytes, buffer.alignment_bytes):
            if offset % alignment:
                found.append(f"buffer {buffer.id}: offset {offset} is no multiple of {alignment}")
        if offset < 0:
            found.append(f"buffer {buffer.id}: offset {offset} is negative")
    return found


def _shared_bytes(problem: Problem, layout: Layout) -> list[str]:
    """Sweep over time. Ends come before beginnings at one moment, since lives are half-open. While
    all that live lie apart, a newcomer that shares a byte with any shares one with a neighbour.
    """
    events = sorted(
        [(buffer.lower, True, buffer) for buffer in problem.buffers]
        + [(buffer.upper, False, buffer) for buffer in problem.buffers],
        key=lambda event: event[:2],
    )
    live: list[_Stretch] = []
    found = []
    for _, begins, buffer in events:
        stretch = _stretch(buffer, layout)
        if begins:
            at = bisect_left(live, stretch)
            neighbours = live[max(0, at - 1) : at + 1]
            found += [_clash(stretch, other) for other in neighbours if _meets(stretch, other)]
            insort(live, stretch)
        else:
            live.pop(bisect_left(live, stretch))
    return found


def _wrong_height(problem: Problem, layout: Layout) -> list[str]:
    unit = problem.granularity_bytes
    ends = [
        layout.offsets_bytes[buffer.id] + (buffer.size_bytes + unit - 1) // unit * unit
        for buffer in problem.buffers
    ]
    highest = max(ends, default=0)
    if highest == layout.height_bytes:
        return []
    return [f"the height is said to be {layout.height_bytes}, the highest end is {highest}"]


def _stretch(buffer: Buffer, layout: Layout) -> _Stretch:
    start = layout.offsets_bytes[buffer.id]
    return start, start + buffer.size_bytes, buffer.id


def _meets(one: _Stretch, other: _Stretch) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _clash(one: _Stretch, other: _Stretch) -> str:
    return (
        f"buffers {one[2]} at [{one[0]}, {one[1]}) and {other[2]} at [{other[0]}, {other[1]}) live "
        "at one moment and share bytes"
    )
