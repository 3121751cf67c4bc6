"""A simulated step as a file that Chrome and Perfetto draw, with the tracks that `memo.trace` gives
a measured one, and one more for each tier's memory.

Scope: the Trace Event Format (complete events "X", counters "C", metadata "M").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planner.contracts import Lane
from planner.schedule.contracts import Schedule, Span

_SECOND_US = 1e6
_TRACKS: tuple[Lane | None, ...] = (None, *Lane)
"""Compute's comes first."""


def save_trace(schedule: Schedule, path: str | Path, *, name: str = "planned") -> None:
    """Write the step as JSON for chrome://tracing or ui.perfetto.dev; `name` is the process's.

    Raises:
        OSError: when the file cannot be written.
    """
    data = {"traceEvents": list(trace_events(schedule, name)), "displayTimeUnit": "ms"}
    Path(path).write_text(json.dumps(data), encoding="utf-8")


def trace_events(schedule: Schedule, name: str) -> Iterator[dict[str, Any]]:
    """The events, spans in order of their start."""
    yield {"ph": "M", "name": "process_name", "args": {"name": name}, "pid": 0, "tid": 0}
    for number, track in enumerate(_TRACKS):
        title = {"name": "compute" if track is None else track}
        yield {"ph": "M", "name": "thread_name", "args": title, "pid": 0, "tid": number}
    yield from map(_complete, schedule.spans)
    for tier, line in schedule.memory.items():
        for at_s, size_bytes in line:
            args = {"bytes": size_bytes}
            yield {"ph": "C", "name": tier, "pid": 0, "ts": at_s * _SECOND_US, "args": args}


def _complete(span: Span) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.name,
        "pid": 0,
        "tid": 0 if span.is_wait else _TRACKS.index(span.lane),
        "ts": span.start_s * _SECOND_US,
        "dur": (span.stop_s - span.start_s) * _SECOND_US,
        "args": {"bytes": span.size_bytes} if span.size_bytes else {},
    }
