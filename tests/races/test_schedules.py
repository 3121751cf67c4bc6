"""The clean engine under a thousand schedules: no race, and the gradients of KEEP bit by bit. A
quarter of them are run each time, all by `make test-all`.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from offload import Lane, Placement, Tier
from offload.transfers import HostTier
from tests.races.compute import Compute
from tests.races.double import DoubleStreams
from tests.races.harness import (
    Outcome,
    Rig,
    Schedule,
    has_nan,
    host_tier,
    kept_gradients,
    run,
    same,
)

SCHEDULES, QUICK, CHUNK = 1000, 250, 50
FIRSTS = [
    pytest.param(first, marks=() if first < QUICK else pytest.mark.long)
    for first in range(0, SCHEDULES, CHUNK)
]


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRSTS)
def test_every_schedule_gives_the_gradients_of_keep(first: int) -> None:
    expected, seen = kept_gradients(), Counter[str]()
    for seed in range(first, first + CHUNK):
        schedule = Schedule(seed)
        outcome = run(schedule)
        assert outcome.violations == [], f"schedule {seed}"
        assert all(same(grads, expected) for grads in outcome.grads), f"schedule {seed}"
        assert outcome.left == {}, f"schedule {seed}"
        counts = outcome.host.meter.counts
        seen["written"] += counts[Lane.D2H].copies
        seen["landed"] += counts[Lane.H2D].copies
        seen["forwarded"] += outcome.host.meter.forwarded_bytes
        seen["spilled"] += counts[Lane.SSD_WRITE].copies
        seen["read"] += counts[Lane.SSD_READ].copies
        seen["overflowed"] += _has_overflowed(schedule, outcome)
    wanted = ("written", "landed", "forwarded", "spilled", "read")
    assert all(seen[what] > CHUNK for what in wanted), seen
    assert seen["overflowed"] > 0, seen


def _has_overflowed(schedule: Schedule, outcome: Outcome) -> bool:
    """Whether the host's limit alone sent parcels to the disk."""
    is_asked = schedule.skeletal is Tier.SSD or Placement.SSD in schedule.placements
    return not is_asked and outcome.host.meter.counts[Lane.SSD_WRITE].copies > 0


def test_the_reference_is_a_number() -> None:
    expected = kept_gradients()
    assert not has_nan(expected)
    assert any(grad is not None and bool(grad.any()) for grad in expected)


def test_the_engine_never_makes_the_host_wait() -> None:
    for seed in range(40):
        rig = Rig.of(Schedule(seed))
        run(Schedule(seed), rig)
        assert rig.streams.host_syncs == 0, f"schedule {seed}"


def _lend_to_another_stream(seed: int) -> DoubleStreams:
    """Fetched ahead on one stream, used on another, and freed."""
    double = DoubleStreams(seed)
    tier = host_tier(double, in_flight_bytes=0)
    with Compute(double):
        later, first = (tier.save([torch.full((900,), value)]) for value in (1.0, 2.0))
    tier.close_group()
    tier.budget.in_flight_bytes = 1 << 20
    tier.load(later)  # and the other one is fetched
    with double.user_stream(is_joined=False), Compute(double):
        (got,) = tier.load(first)
        assert float(got.sum()) == 1800.0
        del got
    tier.sweep()
    return double


def test_memory_that_another_stream_uses_is_not_used_again_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(20):
        assert _lend_to_another_stream(seed).violations == []
    monkeypatch.setattr(HostTier, "_share", lambda *_: None)
    assert any(_lend_to_another_stream(seed).violations for seed in range(20))
