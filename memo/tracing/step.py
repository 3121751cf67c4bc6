"""A training step traced: forward and backward of a wrapped model on fake tensors.

Scope: `trace_step`, from a config to a `StepTrace`. Nothing is computed and no weights are loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from memo.contracts import LayerMode
from memo.kinds import find_layers, root_of
from memo.parallel.contracts import TokenShares
from memo.parallel.shares import share_sequence, share_tokens
from memo.tracing.models import fake_model, load_config
from memo.tracing.run import Request, Run, run_step
from memo.tracing.runtime import DeviceKind
from memo.tracing.settled import TracingMode
from memo.tracing.twin import layer_modes
from offload import MemoError, Placement
from planner.contracts import Stored, Train
from planner.trace.blocks import EMBEDDING, HEAD
from planner.trace.contracts import Kind, LayerTrace, PartTrace, StepTrace
from planner.trace.live import need_of


def trace_step(
    model: str | Path | PreTrainedConfig,
    *,
    tokens: int,
    batch: int = 1,
    tile_tokens: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device_kind: DeviceKind = "cuda",
    train: Train = "full",
    sequence_parallel: int = 1,
    total_tokens: int | None = None,
    stored: Stored = Stored.BEFORE,
    everything: bool = False,
) -> StepTrace:
    """Trace a step of a causal LM's config; see `load_config` for what names one.

    Args:
        tokens: of each of `batch` sequences, on one device.
        tile_tokens: None: what `memo.wrap` chooses on such a device.
        device_kind: whose kernels and tile sizes are traced; no such device is needed.
        sequence_parallel: ranks that share each sequence, of which one with `tokens` tokens is
            traced: one with as many as any.
        total_tokens: of each whole sequence; None: all ranks have as many.
        stored: what they store for attention's backward of what they exchange.
        everything: trace every tile, where one would stand for many.

    Raises:
        ValueError: for a model that is not found, sizes below 1, and `tokens` that are no share of
            `total_tokens`.
        MemoError: for a model that cannot be traced.
    """
    sizes = {"tokens": tokens, "batch": batch, "sequence_parallel": sequence_parallel}
    for name, value in {**sizes, "tile_tokens": 1 if tile_tokens is None else tile_tokens}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: takes 1 or more")
    config = load_config(model)
    request = Request(
        tokens=tokens,
        batch=batch,
        tile_tokens=tile_tokens,
        dtype=dtype,
        device_kind=device_kind,
        train=train,
        shares=_shares(tokens, sequence_parallel, total_tokens),
        stored=stored,
        everything=everything,
    )
    mode = TracingMode()
    with mode:
        root = fake_model(config, dtype, train=train)
    layers = find_layers(root_of(root))
    if not layers:
        raise MemoError(f"{type(root).__name__} has no decoder layers that memo can wrap")
    told = layer_modes(config, layers)
    modes = told or {layer.kind: LayerMode() for layer in layers}
    with mode:
        runs = {
            placement: run_step(modes, root, request, placement)
            for placement in (Placement.RECOMPUTE, Placement.KEEP)
        }
        step = _step(_name(model, config), root, request, runs)
    return step if told else replace(step, notes=(_UNTOLD,))


def _shares(tokens: int, ranks: int, total_tokens: int | None) -> TokenShares:
    if total_tokens is None:
        return share_tokens(tokens * ranks, ranks)
    shares = share_sequence(total_tokens, ranks)
    if shares.tokens[0] != tokens:
        raise ValueError(
            f"tokens is {tokens}: {ranks} ranks have {shares.tokens[0]} of {total_tokens} at most"
        )
    return shares


_UNTOLD = (
    "the self-check of layers could not be run ahead on a small model of this config; memo.wrap "
    "may find that some run whole, and then they need more memory"
)


def _step(name: str, model: nn.Module, request: Request, runs: dict[Placement, Run]) -> StepTrace:
    base = runs[Placement.RECOMPUTE]
    params = list(model.parameters())
    return StepTrace(
        model=name,
        tokens=request.tokens,
        batch=request.batch,
        dtype=str(request.dtype).removeprefix("torch."),
        device=request.device_kind,
        parameters=sum(p.numel() for p in params),
        trainable=sum(p.numel() for p in params if p.requires_grad),
        parameter_bytes=sum(_nbytes(p) for p in params),
        base_bytes=base.base_bytes + base.blocks.cached_bytes,
        embedding=base.blocks.part(EMBEDDING),
        layers=tuple(_layer(kind, request, runs) for kind in base.runtime.samples),
        order=tuple(layer.kind for layer in base.runtime.layers),
        head=base.blocks.part(HEAD),
    )


def _layer(kind: str, request: Request, runs: dict[Placement, Run]) -> LayerTrace:
    base = runs[Placement.RECOMPUTE]
    recomputed, kept = (
        runs[placement].blocks.part(kind) for placement in (Placement.RECOMPUTE, Placement.KEEP)
    )
    runtime = base.runtime
    is_tiled = runtime.modes[kind].is_tiled
    tile_tokens = (runtime.tile_tokens if is_tiled else None) or request.tokens
    params = list(runtime.samples[kind].module.parameters())
    skeletal = {a.id: a for a in recomputed.forward.allocations if a.kind is Kind.SKELETAL}
    x = skeletal[base.blocks.ends.inputs[kind]]
    exchanged = sum(
        a.size_bytes for a in recomputed.forward.allocations if a.kind is Kind.EXCHANGED
    )
    return LayerTrace(
        name=kind,
        tokens=request.tokens,
        tile_tokens=tile_tokens,
        tiles=-(-request.tokens // tile_tokens),
        x_bytes=x.size_bytes,
        o_bytes=sum(a.size_bytes for a in skeletal.values()) - x.size_bytes + exchanged,
        o_core_bytes=exchanged,
        stored_bytes=runs[Placement.KEEP].runtime.calls.stored_bytes(kind)
        if is_tiled
        else _stored_whole(kept, recomputed, x.size_bytes),
        stored_pre_bytes=runs[Placement.KEEP].runtime.calls.stored_pre_bytes(kind)
        if is_tiled
        else 0,
        parameters=sum(p.numel() for p in params),
        parameter_bytes=sum(map(_nbytes, params)),
        gradient_bytes=_gradient_bytes(recomputed),
        recomputed=recomputed,
        kept=kept,
        reason=runtime.modes[kind].reason,
    )


def _stored_whole(kept: PartTrace, recomputed: PartTrace, x_bytes: int) -> int:
    """What a whole layer holds beyond x. Where it saves a copy of x (in float32, as norms do) and
    not x, x goes with its forward.
    """
    more = need_of(kept.forward).left_bytes - need_of(recomputed.forward).left_bytes
    saves_x = any(a.kind is Kind.SKELETAL for a in kept.backward.allocations)
    return max(0, more if saves_x else more - x_bytes)


def _gradient_bytes(part: PartTrace) -> int:
    return sum(a.size_bytes for a in part.backward.allocations if a.kind is Kind.GRADIENT)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _name(model: str | Path | PreTrainedConfig, config: PreTrainedConfig) -> str:
    return str(config.model_type) if isinstance(model, PreTrainedConfig) else str(model)
