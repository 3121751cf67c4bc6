"""The trace file: what Chrome and Perfetto need of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memo.trace import _TRACKS as RUNTIME_TRACKS
from planner.contracts import Lane
from planner.schedule.chrome import save_trace, trace_events
from planner.schedule.contracts import Schedule
from planner.schedule.simulation import simulate
from planner.swap.solving import solve_swap
from tests.planner.swap.cases import random_case


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    case = random_case(200, layers=4, tiles=5, has_ssd=True)
    solution = solve_swap(case.cost, case.rates, case.budgets)
    assert solution is not None
    return simulate(case.cost, case.rates, solution.plan)


def test_a_trace_has_the_tracks_of_a_measured_one(schedule: Schedule) -> None:
    named = [e for e in trace_events(schedule, "planned") if e["name"] == "thread_name"]
    expected = ["compute" if track is None else track.value for track in RUNTIME_TRACKS]
    assert [str(e["args"]["name"]) for e in named] == expected


def test_every_span_is_on_its_track(schedule: Schedule, tmp_path: Path) -> None:
    save_trace(schedule, tmp_path / "trace.json")
    data = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    events = [e for e in data["traceEvents"] if e["ph"] == "X"]
    assert len(events) == len(schedule.spans)
    for number, lane in enumerate(Lane, start=1):
        busy_us = sum(e["dur"] for e in events if e["tid"] == number)
        assert busy_us == pytest.approx(schedule.busy_s[lane] * 1e6)
    waits_us = sum(e["dur"] for e in events if e["name"].startswith("waits for"))
    assert waits_us == pytest.approx(sum(schedule.exposed_s.values()) * 1e6)
    assert all(e["tid"] == 0 for e in events if e["name"].startswith("waits for"))


def test_memory_is_drawn_by_tier(schedule: Schedule) -> None:
    events = [e for e in trace_events(schedule, "planned") if e["ph"] == "C"]
    for tier, peak in schedule.peak_bytes.items():
        assert max(e["args"]["bytes"] for e in events if e["name"] == tier) == peak
