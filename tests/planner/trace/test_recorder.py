"""What a recorder sees: births and deaths of storages, costs, and tiles that stand for others."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from planner.trace.contracts import Pass, Repeat, Segment
from planner.trace.recorder import Recorder, Tape, peak_bytes

_FLOAT_BYTES = 4


def test_lives_are_counted_in_operations() -> None:
    with Recorder() as recorder:
        a = torch.zeros(100)  # operation 0
        b = a + 1  # 1
        del a
        c = b.view(10, 10)  # 2, no storage of its own
        del b
        d = c * 2  # 3
        del c
        torch.zeros(7)  # 4, dead at once
    first, second, third, fourth = recorder.tape.storages
    assert (first.born, first.freed) == (0, 2)
    assert (second.born, second.freed) == (1, 4)
    assert (third.born, third.freed) == (3, None)
    assert (fourth.born, fourth.freed) == (4, 5)
    assert peak_bytes(recorder.tape) == 2 * 100 * _FLOAT_BYTES
    del d
    assert third.freed is None, "what is freed after the recording outlives it"


def test_what_was_there_before_counts_as_long_as_it_lives() -> None:
    weight = torch.zeros(50)
    with Recorder() as recorder:
        recorder.know([weight, weight])
        torch.zeros(1)
        del weight
        torch.zeros(30)
    known = recorder.tape.storages[0]
    assert (known.born, known.freed, known.size_bytes) == (-1, 1, 50 * _FLOAT_BYTES)
    assert peak_bytes(recorder.tape) == 51 * _FLOAT_BYTES


def _step() -> Tape:
    weight = torch.zeros((33, 17), requires_grad=True)
    x, recorder = torch.zeros((5, 17)), Recorder()
    with recorder:
        recorder.know([weight, x])
        functional.silu(functional.linear(x, weight)).sum().backward()
    return recorder.tape


def test_fake_tensors_live_as_real_ones_do() -> None:
    real = _step()
    with FakeTensorMode():
        fake = _step()
    assert [(op.name, op.flops, op.bytes) for op in fake.operations] == [
        (op.name, op.flops, op.bytes) for op in real.operations
    ]
    assert [(s.size_bytes, s.born, s.freed) for s in fake.storages] == [
        (s.size_bytes, s.born, s.freed) for s in real.storages
    ]
    matmuls = [op.flops for op in real.operations if op.flops]
    assert matmuls == [2 * 5 * 17 * 33] * 2, "x takes no gradient"


def test_segments_are_as_marked_and_restored() -> None:
    with Recorder() as recorder:
        torch.zeros(1)
        with recorder.within(Segment.CORE, Pass.BACKWARD):
            torch.zeros(1)
        torch.zeros(1)
    assert [(op.segment, op.direction) for op in recorder.tape.operations] == [
        (Segment.EMBEDDING, Pass.FORWARD),
        (Segment.CORE, Pass.BACKWARD),
        (Segment.EMBEDDING, Pass.FORWARD),
    ]


def test_a_tile_stands_for_those_left_out() -> None:
    with Recorder() as recorder:
        for count in recorder.repeating([1, 2, 1], 5, index=1):
            for _ in range(count):
                torch.zeros(1)
        for _ in recorder.repeating([0, 0, 0], 5, index=1):
            pass  # nothing runs
    assert recorder.tape.repeats == [Repeat(1, 3, 5)]
