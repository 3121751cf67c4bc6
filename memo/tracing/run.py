"""One training step of a fake model, run by the runtime and recorded.

Scope: putting the traced runtime into the model for one step, and taking it out. What is made of
the tape is `step.py`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from memo.attention.fastest import Fastest
from memo.attention.interface import SplitError, register
from memo.contracts import LayerMode, Options
from memo.entry import Entry
from memo.kinds import find_layers, find_norms, owners_of, root_of
from memo.parallel.contracts import TokenShares
from memo.runtime import WrappedLayer
from memo.switch import Switch
from memo.tracing.runtime import Calls, DeviceKind, TracedRuntime
from memo.tracing.settled import settled
from offload import MemoError, Placement, Tier
from planner.contracts import Stored, Train
from planner.trace.blocks import EMBEDDING, HEAD, Blocks, Cut, Ends
from planner.trace.contracts import Pass, Segment
from planner.trace.recorder import Recorder

_VALUES_ASKED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
"""What fake tensors raise when code wants to know their values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is traced: `tokens` of each of `batch` sequences on one device, the most of the `shares`
    of them; `tile_tokens` None: as the runtime chooses; `everything`: every tile, not a few.
    """

    tokens: int
    batch: int
    tile_tokens: int | None
    dtype: torch.dtype
    device_kind: DeviceKind
    train: Train
    shares: TokenShares
    everything: bool
    stored: Stored = Stored.BEFORE


@dataclass(frozen=True, slots=True)
class Run:
    """One step, run and recorded."""

    runtime: TracedRuntime
    blocks: Blocks
    base_bytes: int


def run_step(
    modes: dict[str, LayerMode], model: nn.Module, request: Request, placement: Placement
) -> Run:
    """Run a step with every tile's placement `placement`, within the fake tensors' mode. A layer
    that turns out not to be cut at attention is run whole, and `modes` say so.

    Raises:
        MemoError: for a model whose code looks at values.
    """
    while True:
        recorder = Recorder()
        calls = Calls(recorder)
        try:
            return _run(modes, model, request, placement, calls, recorder)
        except SplitError as error:
            kind = calls.cuts[-1][0]
            if not modes[kind].is_tiled:
                raise
            modes[kind] = LayerMode(f"SplitError: {error}")
        except _VALUES_ASKED as error:
            name = type(root_of(model)).__name__
            raise MemoError(
                f"{name} looks at values, which a trace has none of: {error}"
            ) from error


def _run(
    modes: dict[str, LayerMode],
    model: nn.Module,
    request: Request,
    placement: Placement,
    calls: Calls,
    recorder: Recorder,
) -> Run:
    root = root_of(model)
    runtime = traced_runtime(modes, root, request, placement, calls)
    ids = torch.zeros((request.batch, request.tokens), dtype=torch.int64)
    labels = torch.zeros_like(ids)
    with settled(runtime.loss_tiles), installed(root, runtime), recorder:
        recorder.know((*model.parameters(), *model.buffers(), ids, labels))
        base_bytes = sum(storage.size_bytes for storage in recorder.tape.storages)
        calls.cut(EMBEDDING, Pass.FORWARD, Segment.EMBEDDING)
        loss = model(input_ids=ids, labels=labels).loss
        calls.cut(HEAD, Pass.BACKWARD, Segment.HEAD)
        loss.backward()
        del loss
    gradients = [param.grad for param in model.parameters() if param.grad is not None]
    numbers = frozenset(calls.id_of(grad) for grad in gradients)
    for param in model.parameters():
        param.grad = None
    ends = Ends(calls.inputs, calls.outputs, calls.kinds, numbers)
    return Run(runtime, Blocks(recorder.tape, _cuts(calls), ends), base_bytes)


def _cuts(calls: Calls) -> list[Cut]:
    """The cuts, where what stands between two layers is the former's, and what follows the last
    one is the head's.
    """
    cuts = [Cut(*cut) for cut in calls.cuts]
    after = [index for index, cut in enumerate(cuts) if not cut.part]
    if not after:
        raise MemoError("the model's forward never called its decoder layers")
    last = after[-1]
    head = Cut(HEAD, Pass.FORWARD, cuts[last].start)
    return [*(cut for cut in cuts[:last] if cut.part), head, *cuts[last + 1 :]]


def traced_runtime(
    modes: dict[str, LayerMode],
    root: nn.Module,
    request: Request,
    placement: Placement,
    calls: Calls,
    *,
    is_fake: bool = True,
    fastest: Fastest | None = None,
) -> TracedRuntime:
    """The runtime that tells `calls` what it does; `fastest` None: it tries kernels anew."""
    layers = find_layers(root)
    samples: dict[str, WrappedLayer] = {}
    for layer in layers:
        samples.setdefault(layer.kind, layer)
    options = Options(
        tile_tokens=request.tile_tokens,
        fractions={placement: 1.0},
        skeletal=Tier.DEVICE,
        tiled_loss=True,
    )
    return TracedRuntime(
        options,
        layers,
        dict(modes),
        Switch.of(root, attention=any(mode.is_tiled for mode in modes.values())),
        find_norms(root, layers),
        calls=calls,
        samples=samples,
        device_kind=request.device_kind,
        shares=request.shares,
        stored=request.stored,
        everything=request.everything,
        is_fake=is_fake,
        fastest=fastest or Fastest(),
    )


@contextmanager
def installed(root: nn.Module, runtime: TracedRuntime) -> Iterator[None]:
    """`root` runs by `runtime` inside."""
    register()
    entries = [Entry(owner, runtime) for owner in owners_of(root, runtime.layers)]
    for entry in entries:
        entry.install()
    try:
        yield
    finally:
        for entry in entries:
            entry.remove()
