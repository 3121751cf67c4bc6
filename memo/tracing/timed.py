"""A training step timed: the model's own layers, run by the runtime on this machine's device.

Scope: `time_step`. One layer of each class is run, with the embedding and the head, and of many
tiles a few; what each phase takes is told by a `Stopwatch`. So calibration runs what training runs:
its kernels at its sizes, its copies, and what Python adds to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memo.attention.fastest import Fastest, Remembered
from memo.contracts import LayerMode
from memo.kinds import find_layers, root_of
from memo.parallel.shares import share_tokens
from memo.tracing.run import Request, installed, traced_runtime
from memo.tracing.runtime import Calls
from memo.tracing.settled import settled
from memo.tracing.twin import layer_modes
from offload import Placement
from offload.cuda import CudaStreams
from planner.trace.blocks import EMBEDDING, HEAD
from planner.trace.contracts import Kind, Pass, Phase, Segment
from planner.trace.stopwatch import Clock, Stopwatch


@dataclass(slots=True)
class _TimedCalls(Calls):
    """Calls whose parts a stopwatch is told; what stands after a layer is of the head."""

    stopwatch: Stopwatch = field(kw_only=True)

    def cut(self, part: str, direction: Pass, segment: Segment) -> None:
        self.stopwatch.part = part or HEAD
        Calls.cut(self, part, direction, segment)

    def mark(self, tensor: Tensor, kind: Kind, is_for_pre: bool) -> None:
        """Storages are not followed."""

    def id_of(self, tensor: Tensor) -> int:
        return -1


def time_step(
    model: nn.Module,
    *,
    tokens: int,
    batch: int = 1,
    tile_tokens: int | None = None,
    everything: bool = False,
    repeats: int = 3,
    modes: Mapping[str, LayerMode] | None = None,
) -> dict[Phase, float]:
    """Seconds of each phase of a step with all tiles recomputed: medians over `repeats`, after a
    step that warms up.

    Args:
        model: a causal LM on the device that it is trained on, in training mode and not wrapped.
            Gradients that it has are given back.
        tokens: of each of `batch` sequences.
        tile_tokens: None: what `memo.wrap` chooses.
        everything: run every tile, where one would stand for many.
        modes: how each kind of layer runs; None: as the self-check of a small twin says.

    Raises:
        ValueError: for sizes below 1.
    """
    sizes = {"tokens": tokens, "batch": batch, "repeats": repeats}
    for name, value in {**sizes, "tile_tokens": 1 if tile_tokens is None else tile_tokens}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: takes 1 or more")
    root, param = root_of(model), next(model.parameters())
    request = Request(
        tokens=tokens,
        batch=batch,
        tile_tokens=tile_tokens,
        dtype=param.dtype,
        device_kind="cuda" if param.is_cuda else "cpu",
        train="full",
        shares=share_tokens(tokens, 1),
        everything=everything,
    )
    told = dict(modes) if modes is not None else _modes(root)
    fastest = Remembered()  # tried in the step that warms up
    with _gradients_apart(model), torch.random.fork_rng([param.device] if param.is_cuda else []):
        runs = [_time(model, root, request, told, fastest) for _ in range(1 + repeats)][1:]
    phases = dict.fromkeys(phase for run in runs for phase in run)
    return {phase: median(run.get(phase, 0.0) for run in runs) for phase in phases}


def _time(
    model: nn.Module,
    root: nn.Module,
    request: Request,
    modes: dict[str, LayerMode],
    fastest: Fastest,
) -> dict[Phase, float]:
    device = next(model.parameters()).device
    stopwatch = Stopwatch(_clock(device))
    calls = _TimedCalls(stopwatch, stopwatch=stopwatch)
    runtime = traced_runtime(
        modes, root, request, Placement.RECOMPUTE, calls, is_fake=False, fastest=fastest
    )
    shape = (request.batch, request.tokens)
    embeddings: Any = cast(PreTrainedModel, root).get_input_embeddings()
    ids = torch.randint(0, embeddings.num_embeddings, shape, device=device)
    with settled(runtime.loss_tiles), installed(root, runtime), stopwatch.running():
        calls.cut(EMBEDDING, Pass.FORWARD, Segment.EMBEDDING)
        loss = model(input_ids=ids, labels=ids).loss
        calls.cut(HEAD, Pass.BACKWARD, Segment.HEAD)
        loss.backward()
    del loss
    model.zero_grad(set_to_none=True)
    return stopwatch.seconds


def _clock(device: torch.device) -> Clock:
    if device.type != "cuda":
        return Clock()
    streams = CudaStreams(device)
    return Clock(
        moment=lambda: streams.current().record(),
        between=lambda start, end: end.seconds_since(start),
        settle=streams.synchronize,
    )


def _modes(root: nn.Module) -> dict[str, LayerMode]:
    layers = find_layers(root)
    told = layer_modes(root.config, layers)  # type: ignore[arg-type]  # a module's attribute
    return told or {layer.kind: LayerMode() for layer in layers}


@contextmanager
def _gradients_apart(model: nn.Module) -> Iterator[None]:
    before = [param.grad for param in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for param, grad in zip(model.parameters(), before, strict=True):
            param.grad = grad
