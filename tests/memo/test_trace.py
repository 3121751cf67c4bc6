"""The trace of a step: a file that Chrome's viewer takes, in which nothing overlaps on a track."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import memo
from offload import Lane
from tests.behaviour.common import batch, plain_model, wrapped_model


def _events(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def _tracks(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    tracks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[names[event["tid"]]].append(event)
    return tracks


def test_layers_and_lanes_have_their_tracks(tmp_path: Path) -> None:
    model, path = wrapped_model(placement="host", skeletal="host"), tmp_path / "trace.json"
    with memo.trace(model, path):
        model(**batch()).loss.backward()
    tracks = _tracks(_events(path))
    layers = [e["name"] for e in tracks["compute"] if "Layer" in e["name"]]
    forwards = [f"LlamaDecoderLayer {n} forward" for n in range(2)]
    backwards = [f"LlamaDecoderLayer {n} backward" for n in (1, 0)]
    assert layers == [*forwards, *backwards]
    written = sum(e["args"].get("bytes", 0) for e in tracks["d2h"])
    assert written == memo.report(model).lanes[Lane.D2H].moved_bytes
    for events in (tracks["d2h"], tracks["h2d"]):
        for one, other in pairwise(sorted(events, key=lambda e: e["ts"])):
            assert one["ts"] + one["dur"] <= other["ts"] + 1.0  # microseconds


def test_without_transfers_there_is_compute_alone(tmp_path: Path) -> None:
    model, path = wrapped_model(), tmp_path / "trace.json"
    with memo.trace(model, path):
        model(**batch()).loss.backward()
    assert list(_tracks(_events(path))) == ["compute"]


def test_a_step_that_fails_leaves_a_trace_and_the_next_is_traced(tmp_path: Path) -> None:
    model, path = wrapped_model(skeletal="host"), tmp_path / "trace.json"

    def failing_step() -> None:
        with memo.trace(model, path):
            model(**batch())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_step()
    assert len(_tracks(_events(path))["compute"]) >= 2
    with memo.trace(model, path):
        model(**batch()).loss.backward()
    assert len(_tracks(_events(path))["compute"]) >= 4


def test_what_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(memo.MemoError, match="not wrapped"), memo.trace(plain_model(), tmp_path):
        pass
    model = wrapped_model()
    with pytest.raises(FileNotFoundError), memo.trace(model, tmp_path / "no" / "trace.json"):
        pass
    with (
        memo.trace(model, tmp_path / "outer.json"),
        pytest.raises(memo.MemoError, match="already"),
        memo.trace(model, tmp_path / "inner.json"),
    ):
        pass
