"""Shapes of calls: what makes two calls alike, and how a report tells them."""

from __future__ import annotations

from torch._subclasses.fake_tensor import FakeTensorMode

from memo.attention.masks import RangeMask
from memo.attention.shapes import Shape
from offload import CoreCall
from tests.memo.attention.calls import MASKS, random_call


def _full() -> CoreCall:
    return random_call(MASKS["full"])


def test_shapes_are_told_in_words() -> None:
    call = random_call(MASKS["full"], softcap=2.0)
    assert str(Shape.of(call)) == "causal, softcap, float64, 9/3 heads of 4, 128+ tokens, cpu"


def test_long_calls_are_of_one_shape() -> None:
    lengths = (8191, 8192, 20_000)
    shapes = [Shape.of(random_call(RangeMask.full(n, causal=True))) for n in lengths]
    assert shapes[0].tokens == 4096
    assert shapes[1] == shapes[2]


def test_a_choice_on_fake_tensors_is_none_for_real_ones() -> None:
    call = _full()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        heads = tuple(mode.from_tensor(h.detach()) for h in call.heads)
        fake = Shape.of(CoreCall(heads=heads, options=call.options))
    assert fake != Shape.of(call)
    assert fake.device == "fake cpu"
