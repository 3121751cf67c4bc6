"""`memo.trace`: what compute and the lanes did, as a file that Chrome and Perfetto draw.

Scope: turning measured spans into trace events (the Trace Event Format's complete events).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memo.wrap import runtime_of
from offload import Lane, Span

_SECOND_US = 1e6
_TRACKS: tuple[Lane | None, ...] = (None, *Lane)
"""Compute's comes first."""


@contextmanager
def trace(model: nn.Module, path: str | Path) -> Iterator[None]:
    """Write what a wrapped model's layers and lanes do inside to `path`, as JSON for
    chrome://tracing or ui.perfetto.dev: a track for compute, with the times in which it waited, and
    one for each lane.

    The device is waited for at the end, so trace a few steps, not the whole training.

    Raises:
        MemoError: for a model that is not wrapped, and for a trace within a trace.
        OSError: when the file cannot be written.
    """
    store, spans = runtime_of(model).store, dict[torch.device, list[Span]]()
    with Path(path).open("w", encoding="utf-8") as file:
        try:
            with store.traced() as spans:
                yield
        finally:  # a step that failed is looked at, too
            json.dump({"traceEvents": list(_events(spans)), "displayTimeUnit": "ms"}, file)


def _events(spans: Mapping[torch.device, list[Span]]) -> Iterator[dict[str, Any]]:
    for process, (device, found) in enumerate(spans.items()):
        yield _named("process", str(device), pid=process, tid=0)
        for number, track in enumerate(_TRACKS):
            yield _named("thread", "compute" if track is None else track, pid=process, tid=number)
        for span in found:
            yield _complete(span, process)


def _named(what: str, name: str, **ids: int) -> dict[str, Any]:
    return {"ph": "M", "name": f"{what}_name", "args": {"name": name}, **ids}


def _complete(span: Span, process: int) -> dict[str, Any]:
    waits = span.lane is not None and span.is_of_compute
    return {
        "ph": "X",
        "name": f"waits for {span.lane}" if waits else span.name,
        "pid": process,
        "tid": 0 if span.is_of_compute else _TRACKS.index(span.lane),
        "ts": span.start_s * _SECOND_US,
        "dur": (span.stop_s - span.start_s) * _SECOND_US,
        "args": {"bytes": span.size_bytes} if span.size_bytes else {},
    }
