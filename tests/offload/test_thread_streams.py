"""The streams of a plain CPU: order, waiting, and failures that reach whoever waits."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from offload import TransferError
from offload.threads import ThreadLane, ThreadStreams

WAIT_S = 20.0
"""Only a deadlock takes so long."""


def _bytes(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def _held_up(lane: object) -> threading.Event:
    """Keep a lane busy until the result is set."""
    assert isinstance(lane, ThreadLane)
    gate = threading.Event()
    lane._executor.submit(gate.wait, WAIT_S)
    return gate


def test_a_copy_is_over_after_its_event() -> None:
    streams, target = ThreadStreams(), _bytes(0, 0)
    streams.d2h.copy(target, _bytes(3, 4))
    streams.current().wait(streams.d2h.record())
    assert target.tolist() == [3, 4]


def test_the_host_goes_on_beside_a_lane() -> None:
    streams, target = ThreadStreams(), _bytes(0)
    gate = _held_up(streams.d2h)
    streams.d2h.copy(target, _bytes(1))
    event = streams.d2h.record()
    assert not event.is_done()
    assert target.tolist() == [0]
    gate.set()
    streams.current().wait(event)
    assert event.is_done()
    assert target.tolist() == [1]


def test_a_lane_waits_for_another() -> None:
    streams, host, back = ThreadStreams(), _bytes(0), _bytes(9)
    gate = _held_up(streams.d2h)
    streams.d2h.copy(host, _bytes(5))
    streams.h2d.wait(streams.d2h.record())
    streams.h2d.copy(back, host)
    landed = streams.h2d.record()
    gate.set()
    streams.current().wait(landed)
    assert back.tolist() == [5]


def test_a_failed_copy_reaches_the_one_who_waits_and_nobody_else() -> None:
    streams, target = ThreadStreams(), _bytes(0, 0)
    streams.d2h.copy(target, _bytes(1, 2, 3))
    with pytest.raises(TransferError, match="failed") as caught:
        streams.current().wait(streams.d2h.record())
    assert isinstance(caught.value.__cause__, ValueError)
    streams.d2h.copy(target, _bytes(1, 2))
    streams.current().wait(streams.d2h.record())
    assert target.tolist() == [1, 2]


def test_a_failure_goes_on_to_lanes_that_wait() -> None:
    streams, target = ThreadStreams(), _bytes(0, 0)
    gate = _held_up(streams.d2h)
    streams.d2h.copy(target, _bytes(1, 2, 3))
    streams.h2d.wait(streams.d2h.record())
    streams.h2d.copy(_bytes(0, 0), target)
    landed = streams.h2d.record()
    gate.set()
    with pytest.raises(TransferError):
        streams.current().wait(landed)


def test_time_between_events() -> None:
    streams = ThreadStreams()
    start = streams.current().record()
    gate = _held_up(streams.h2d)
    stop = streams.h2d.record()
    threading.Timer(0.05, gate.set).start()
    streams.synchronize()
    assert 0.04 < stop.seconds_since(start) < WAIT_S
