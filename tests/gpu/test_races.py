"""Races on real streams: lanes and compute are delayed in turn, freed memory is overwritten at
once, and gradients must stay those of KEEP, bit by bit.

Scope: thirty steps of every schedule. Nothing is looked at before the end: a comparison would make
the host wait, and so hide a race between steps.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import memo
from offload.cuda import CudaStream
from tests.gpu.common import batch_on, llama

STEPS, TOKENS, TILE_TOKENS = 30, 700, 128
_LONG, _SHORT = 2_000_000, 50_000
"""Clock cycles: about a millisecond, which is many of these kernels, and less than one."""

Cycles = Callable[[bool], int]
"""How long to wait before a copy, given whether it goes to the host."""

SCHEDULES: dict[str, Cycles] = {
    "late to the host": lambda to_host: _LONG if to_host else 0,
    "late to the device": lambda to_host: 0 if to_host else _LONG,
    "both late": lambda _: _LONG,
    "by chance": lambda _: random.choice((0, 0, _SHORT, _LONG)),
    "at once": lambda _: 0,
}


@pytest.fixture
def delayed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cycles], None]:
    """Let a lane sleep before each copy, on its own stream."""
    original = CudaStream.copy

    def delay(cycles: Cycles) -> None:
        def copy_late(stream: CudaStream, target: Tensor, source: Tensor) -> None:
            count = cycles(source.is_cuda)
            if count:
                with stream.active():
                    torch.cuda._sleep(count)
            original(stream, target, source)

        monkeypatch.setattr(CudaStream, "copy", copy_late)

    return delay


def overwrite(_: nn.Module, inputs: tuple[Tensor, ...], *__: object) -> None:
    """Take memory that was just freed, and fill it with what no gradient survives."""
    for _again in range(4):
        torch.full_like(inputs[0], float("nan"))


def compute_late(*_: object) -> None:
    torch.cuda._sleep(_SHORT)


@contextmanager
def hooked(model: PreTrainedModel, hook: Callable[..., None]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(hook) for layer in model.model.layers]
    handles += [layer.register_forward_hook(hook) for layer in model.model.layers]
    yield
    for handle in handles:
        handle.remove()


def gradients_of_steps(
    model: PreTrainedModel, batches: list[dict[str, Tensor]], *, streams: int = 1
) -> list[list[Tensor]]:
    """Of each step of two accumulated batches; with more streams, steps take turns on them."""
    home = torch.cuda.current_stream()
    others = [home, *(torch.cuda.Stream() for _ in range(streams - 1))]
    found = []
    for step in range(0, len(batches), 2):
        stream = others[step // 2 % len(others)]
        stream.wait_stream(home)
        with torch.cuda.stream(stream):
            model.zero_grad(set_to_none=True)
            for batch in batches[step : step + 2]:
                model(**batch).loss.backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        home.wait_stream(stream)
        for grads in found[-1]:
            grads.record_stream(home)
    return found


def assert_same(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    torch.cuda.synchronize()
    wrong = [
        step
        for step, pair in enumerate(zip(found, expected, strict=True))
        if not all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
    ]
    assert not wrong, f"gradients differ in steps {wrong}"


@pytest.fixture
def batches(device: torch.device) -> list[dict[str, Tensor]]:
    """Two for each step, of lengths that take turns: a pool must serve all of them."""
    return [batch_on(device, 1, TOKENS - 64 * (seed % 3), seed=seed) for seed in range(2 * STEPS)]


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("in_flight_bytes", [None, 1_000_000])
def test_gradients_under_every_schedule(
    schedule: str,
    in_flight_bytes: int | None,
    device: torch.device,
    batches: list[dict[str, Tensor]],
    delayed: Callable[[Cycles], None],
) -> None:
    model = llama(device)
    kept = memo.wrap(copy.deepcopy(model), tile_tokens=TILE_TOKENS, placement="keep")
    expected = gradients_of_steps(kept, batches)
    wrapped = memo.wrap(
        model,
        tile_tokens=TILE_TOKENS,
        placement={"host": 0.5, "recompute": 0.5},
        skeletal="host",
        in_flight_bytes=in_flight_bytes,
    )
    delayed(SCHEDULES[schedule])
    with hooked(wrapped, overwrite):
        assert_same(gradients_of_steps(wrapped, batches), expected)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("late", [compute_late, overwrite])
def test_gradients_on_streams_of_the_user(
    late: Callable[..., None],
    device: torch.device,
    batches: list[dict[str, Tensor]],
    delayed: Callable[[Cycles], None],
) -> None:
    model = llama(device)
    kept = memo.wrap(copy.deepcopy(model), tile_tokens=TILE_TOKENS, placement="keep")
    expected = gradients_of_steps(kept, batches)
    wrapped = memo.wrap(model, tile_tokens=TILE_TOKENS, placement="host", skeletal="host")
    delayed(SCHEDULES["by chance"])
    with hooked(wrapped, late):
        assert_same(gradients_of_steps(wrapped, batches, streams=3), expected)


@pytest.mark.usefixtures("deterministic")
def test_a_missing_wait_is_seen(
    device: torch.device,
    batches: list[dict[str, Tensor]],
    delayed: Callable[[Cycles], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The schedules above prove something only if a race changes gradients under them.
    model = llama(device)
    kept = memo.wrap(copy.deepcopy(model), tile_tokens=TILE_TOKENS, placement="keep")
    expected = gradients_of_steps(kept, batches[:4])
    wrapped = memo.wrap(model, tile_tokens=TILE_TOKENS, placement="host", skeletal="host")
    delayed(SCHEDULES["both late"])
    monkeypatch.setattr(CudaStream, "wait", lambda *_: None)
    with hooked(wrapped, overwrite), pytest.raises(AssertionError, match="gradients differ"):
        assert_same(gradients_of_steps(wrapped, batches[:4]), expected)
