"""`memo.wrap` and `memo.unwrap`: putting the runtime into a model and taking it out.

Scope: what happens once, around training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from memo.arguments import Arguments, Default, Settings
from memo.attention.interface import register
from memo.check import check_layers, is_tokenwise
from memo.contracts import LayerMode, PlacementLike
from memo.entry import Entry
from memo.kinds import find_layers, find_norms, owners_of, root_of, samples_of
from memo.parallel.groups import SequenceParallelLike
from memo.parallel.setup import set_up
from memo.runtime import Runtime, WrappedLayer
from memo.switch import Switch
from memo.warning import warn_once
from memo.zero import mark_leaves, unmark_leaves, whole_parameters
from offload import MemoError
from planner.plan import NoPlan, Plan

_AUTO, _RECOMPUTE, _KEEP = Default("auto"), Default("recompute"), Default("keep")

_RUNTIME = "_memo_runtime"
"""The attribute of a wrapped model that holds its runtime."""

ModelT = TypeVar("ModelT", bound=nn.Module)


def wrap(
    model: ModelT,
    *,
    plan: Plan | NoPlan | str | Path | None = None,
    tokens: int | str | None = None,
    batch: int | None = None,
    tile_tokens: int | str = _AUTO,
    placement: PlacementLike = _RECOMPUTE,
    skeletal: str = _KEEP,
    tiled_loss: bool = True,
    in_flight_bytes: int | None = None,
    host_bytes: int | None = None,
    spill_dir: str | Path | Sequence[str | Path] | None = None,
    spill_bytes: int | None = None,
    verify: str = "none",
    raw: bool = False,
    sequence_parallel: SequenceParallelLike = None,
) -> ModelT:
    """Let a Hugging Face model train on long sequences; returns the same object, to be trained as
    before.

    Args:
        model: a causal LM of transformers, its body alone, or either inside PEFT.
        plan: what `memo.plan` returned, or the file that it or `memo plan -o` wrote: each layer's
            tiles and skeletal tensors go where it says. It decides `tile_tokens`, `placement`,
            `skeletal`, `in_flight_bytes`, `host_bytes` and `sequence_parallel`, which are refused
            beside it; `spill_dir` is needed if it uses the SSD. Calls with gradients are of the
            planned length and batch; without gradients, of any. Its ZeRO stage, and an optimizer on
            the host or the SSD, are for an engine to do (DeepSpeed, FSDP2), before `wrap` or after:
            the first call with gradients is refused (`MemoError`) where stage 3 was planned for
            several ranks and parameters are whole.
        tokens: the length of a sequence (a number, or "64k" or "1M" of 1024): plan for it now, for
            the memory that is free on this machine, and run that. It takes some seconds, most of
            them to measure the machine; `spill_dir` is measured, too, unless `memo bench ssd` has
            done so. The optimizer's states are counted as AdamW's, and on the device. All ranks of
            a job call `wrap` alike, and the first one's plan is everybody's.
        batch: sequences of a step, beside `tokens`; None: 1.
        tile_tokens: tokens that a layer's token-wise parts are run on at a time; "auto" chooses by
            the shapes.
        placement: where the tensors that backward could rebuild are until then: "keep" (on the
            device), "host", "ssd", "recompute" (nowhere), or fractions of the tiles such as
            {"host": 0.25, "recompute": 0.75}.
        skeletal: where layer inputs and attention outputs are, which are never recomputed: "keep",
            "host" or "ssd".
        tiled_loss: compute head and loss tile by tile, so that logits are never whole.
        in_flight_bytes: device memory that copies between device and host may hold at a time:
            tensors still being written, and those fetched before backward asks for them. The less,
            the more compute waits for copies. As much host memory is lent to what is on its way to
            or from a disk. A tensor larger than this is copied while compute waits, and is not in
            flight. None: twice what one layer moves.
        host_bytes: memory on the host for all that leaves the device, allocated (and pinned, beside
            a GPU) now, so that no step has to; what does not fit goes to `spill_dir`, if there is
            one. None: as much as turns out to be needed, in the first step.
        spill_dir: a directory on a local disk for "ssd", or several, best each on a disk of its
            own. Files there have no names, and are gone with the process however it ends.
        spill_bytes: space to reserve there now. None: as much as turns out to be needed, before
            anything of the second layer is computed.
        verify: "checksum" compares what comes back from the disk with what was written.
        raw: `spill_dir` names block devices that hold nothing, to be written without a file system.
        sequence_parallel: how many consecutive ranks of `torch.distributed` share each sequence
            (all ranks then call `wrap` alike), or the process group or one-axis device mesh of
            those that do. Each of them is given the whole batch, runs its share of the tokens, and
            returns the loss and the outputs of the whole. None or 1: a rank has its sequences for
            itself. Gradients are made to be *averaged over all ranks* of the job, those of a group
            among them, which is what DDP, FSDP2 and DeepSpeed's ZeRO do over their default group:
            the average is the gradient of the mean loss over sequence groups. (An engine's own
            sequence parallelism stays off.) Calls that are not memo's, such as generation, run
            whole on every rank that makes them: where some ranks of a group make one of memo's and
            others none, these wait until the job's timeout. Logits are made where `tiled_loss` is
            off or no labels are given; router logits are of real tokens, where some are padding.

    Raises:
        ValueError: for an argument that is not understood; for a plan that was made for another
            model, dtype or number of ranks, which names what differs.
        OSError: for a plan's file that cannot be read.
        MemoError: when nothing fits for `tokens`, with the budget that binds and the longest that
            does; for a model that is wrapped already or has no layer that can be wrapped; under
            sequence parallelism also for one with a layer that is not token-wise outside attention.
        SpillError: when a directory, its space or a device can't be had.
    """
    said = Arguments(
        plan=plan,
        tokens=tokens,
        batch=batch,
        tile_tokens=tile_tokens,
        placement=placement,
        skeletal=skeletal,
        tiled_loss=tiled_loss,
        in_flight_bytes=in_flight_bytes,
        host_bytes=host_bytes,
        spill_dir=spill_dir,
        spill_bytes=spill_bytes,
        verify=verify,
        raw=raw,
        sequence_parallel=sequence_parallel,
    )
    by_hand = said.by_hand()
    root, layers = _wrappable(model)
    register()
    runtime = _runtime(root, layers, by_hand, said)
    runtime.leaves = mark_leaves(layer.module for layer in layers)
    root.__dict__[_RUNTIME] = runtime
    for owner in owners_of(root, layers):
        Entry(owner, runtime).install()
    for kind, mode in runtime.modes.items():
        if not mode.is_tiled:
            warn_once(runtime, f"layers of class {kind} run whole, not tile by tile: {mode.reason}")
    return model


def unwrap(model: ModelT) -> ModelT:
    """Restore the model as it was before `wrap`; returns the same object. A process group that
    `wrap` made for a number of ranks lives on, as long as `torch.distributed`'s own.

    Raises:
        MemoError: for a model that is not wrapped.
    """
    root = root_of(model)
    # What others laid over our forwards in the meantime (mixed precision) still calls them.
    runtime_of(root).is_removed = True
    unmark_leaves(runtime_of(root).leaves)
    del root.__dict__[_RUNTIME]
    for module in root.modules():
        entry = module.__dict__.get("forward")
        if isinstance(entry, Entry):
            entry.remove()
    return model


def runtime_of(model: nn.Module) -> Runtime:
    """The runtime of a wrapped model.

    Raises:
        MemoError: for a model that is not wrapped.
    """
    root = root_of(model)
    runtime = _runtime_or_none(root)
    if runtime is None:
        raise MemoError(f"this {type(root).__name__} is not wrapped; call memo.wrap(model) first")
    return runtime


def _runtime_or_none(root: nn.Module) -> Runtime | None:
    runtime: Runtime | None = root.__dict__.get(_RUNTIME)
    return runtime


def _wrappable(model: nn.Module) -> tuple[PreTrainedModel, list[WrappedLayer]]:
    """The model in it that is wrapped, and its layers."""
    root = root_of(model)
    if any(isinstance(module.__dict__.get("forward"), Entry) for module in root.modules()):
        raise MemoError(f"this {type(root).__name__} is wrapped already; memo.unwrap it first")
    layers = find_layers(root)
    if not layers:
        raise MemoError(f"{type(root).__name__} has no decoder layers that memo can wrap")
    if any(param.is_meta for param in root.parameters()):
        raise MemoError(
            "the model has parameters without memory (meta device); load its weights first"
        )
    return root, layers


def _runtime(
    root: PreTrainedModel, layers: list[WrappedLayer], by_hand: Settings | None, said: Arguments
) -> Runtime:
    """What the model is found to be, and what it is to do."""
    samples = samples_of(layers)
    with whole_parameters(root, (layer.module for layer in layers), samples.values()):
        modes = check_layers(root, samples)
        settings = by_hand or _planned(root, layers, modes, said)
        options, asked = settings.options, settings.sequence_parallel
        return Runtime(
            options,
            layers,
            modes,
            _switch(root, modes),
            [norm for norm in find_norms(root, layers) if is_tokenwise(norm)],
            None
            if asked is None
            else set_up(asked, root, samples, modes, options, settings.stored),
            settings.forecast,
        )


def _planned(
    root: PreTrainedModel, layers: list[WrappedLayer], modes: dict[str, LayerMode], said: Arguments
) -> Settings:
    # A trace wraps models itself: planning imports this module.
    from memo.planning.live import live_model
    from memo.planning.wrapping import planned_settings

    return planned_settings(root, live_model(root, layers, modes), said)


def _switch(root: nn.Module, modes: dict[str, LayerMode]) -> Switch:
    return Switch.of(root, attention=any(mode.is_tiled for mode in modes.values()))
