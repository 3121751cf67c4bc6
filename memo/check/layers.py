"""The self-check: which layers can run tile by tile is proved on this model at wrap time, never
guessed.

Scope: for every kind of decoder layer, run one of them untiled and tiled on a few tokens, in
float32 where a copy fits, and compare output and every gradient. A kind that differs, or that
cannot be cut, runs whole, and its reason is told.
What evaluation mode does not show is the business of `training.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memo.attention.core import AttentionCore
from memo.attention.interface import Seam
from memo.check.capture import (
    BATCH,
    TILE_TOKENS,
    TOKENS,
    LayerCall,
    capture_calls,
    cast,
    checkable,
    evaluating,
    some_ids,
)
from memo.check.difference import differs
from memo.check.training import training_reason
from memo.contracts import LayerMode
from memo.layers import HFLayer, LayerArguments
from memo.positions import counting_soon
from memo.switch import Switch
from offload import (
    LayerCount,
    Placement,
    Policy,
    Replay,
    TensorStore,
    Tier,
    TiledForward,
    run_tiled,
    split_tokens,
)


def check_layers(model: nn.Module, samples: dict[str, nn.Module]) -> dict[str, LayerMode]:
    """How each kind of layer can run, told from one `samples` layer of each.

    Random numbers, modes and gradients of the model are as before afterwards.
    """
    with torch.random.fork_rng(_cuda_devices(model)), evaluating(model):
        ids = some_ids(model)
        plain = capture_calls(model, samples, ids)
        core = AttentionCore(TensorStore())
        try:
            with Switch.of(model, attention=True).on(), Seam(core).entered():
                ours = capture_calls(model, samples, ids)
        except Exception as error:  # noqa: BLE001 - whatever a model's own code raises on a mask that is no tensor
            return dict.fromkeys(
                samples, LayerMode(f"the model cannot take masks as ranges ({_brief(error)})")
            )
        modes = {
            kind: _check(layer, plain[kind], ours[kind], core) for kind, layer in samples.items()
        }
        if any(mode.is_tiled for mode in modes.values()):
            return _settle_mixed(samples, modes, plain, ours, core)
        return modes


def is_tokenwise(module: nn.Module) -> bool:
    """Whether a norm gives each token the same whatever stands beside it, proved on a few random
    ones.
    """
    weight = next(module.parameters())
    generator = torch.Generator(weight.device).manual_seed(0)
    shape = (BATCH, TOKENS, weight.numel())
    x = torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)
    with torch.no_grad():
        try:
            whole = type(module).forward(module, x)
            parts = [type(module).forward(module, part) for part in x.split(TILE_TOKENS, dim=1)]
        except (RuntimeError, TypeError):  # it takes other arguments, or other sizes
            return False
    same_form = isinstance(whole, Tensor) and whole.shape == x.shape
    return same_form and differs([torch.cat(parts, 1)], [whole], ["output"], weight.dtype) is None


def _settle_mixed(
    samples: dict[str, nn.Module],
    modes: dict[str, LayerMode],
    plain: dict[str, LayerCall],
    ours: dict[str, LayerCall],
    core: AttentionCore,
) -> dict[str, LayerMode]:
    """A layer that runs whole among tiled ones must understand the masks that those are given."""
    for kind, mode in modes.items():
        if mode.is_tiled:
            continue
        layer, dtype = checkable(samples[kind])
        try:
            y_plain = _run_plain(layer, cast(plain[kind], dtype)).detach()
            with Switch.of(layer, attention=True).on(), Seam(core).entered():
                call = LayerCall((plain[kind].args[0], *ours[kind].args[1:]), ours[kind].kwargs)
                y_ours = _run_plain(layer, cast(call, dtype)).detach()
            same = differs([y_ours], [y_plain], ["output"], dtype) is None
        except Exception:  # noqa: BLE001 - any failure means the same: not under our masks
            same = False
        if not same:
            reason = f"{kind} beside it runs whole and cannot take masks as ranges"
            return {k: LayerMode(m.reason or reason) for k, m in modes.items()}
    return modes


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {param.device for param in model.parameters()}
    return [device.index for device in devices if device.type == "cuda"]


def _check(layer: nn.Module, plain: LayerCall, ours: LayerCall, core: AttentionCore) -> LayerMode:
    for name, module in layer.named_modules():
        if getattr(module, "track_running_stats", False):
            return LayerMode(f"{name} ({type(module).__name__}) keeps statistics over tokens")
    layer, dtype = checkable(layer)
    with counting_soon(layer):
        return _compared(layer, cast(plain, dtype), ours, core, dtype)


def _compared(
    layer: nn.Module, plain: LayerCall, ours: LayerCall, core: AttentionCore, dtype: torch.dtype
) -> LayerMode:
    expected, names = _gradients(layer, plain, None)
    try:
        # The same input for both: that of our run has been through other kernels.
        ours = cast(LayerCall((plain.args[0], *ours.args[1:]), ours.kwargs), dtype)
        got, _ = _gradients(layer, ours, core)
        reason = differs(got, expected, names, dtype) or training_reason(layer, ours)
    except Exception as error:  # noqa: BLE001 - a layer's own code may fail in any way on a tile
        return LayerMode(_brief(error))
    return LayerMode(reason)


def _gradients(
    layer: nn.Module, call: LayerCall, core: AttentionCore | None
) -> tuple[list[Tensor | None], list[str]]:
    """Output, gradient of x and of every parameter; tiled when given a core."""
    params = dict(layer.named_parameters())
    with torch.enable_grad():
        x = call.args[0].detach().requires_grad_()
        call = LayerCall((x, *call.args[1:]), call.kwargs)
        y = _run_plain(layer, call) if core is None else _run_tiled(layer, call, core)
        generator = torch.Generator(y.device).manual_seed(0)
        grad_y = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        inputs = [t for t in (x, *params.values()) if t.requires_grad]
        grads = torch.autograd.grad(y, inputs, grad_y, allow_unused=True)
    named = [name for name, param in params.items() if param.requires_grad]
    return [y.detach(), *grads], [
        "output",
        "gradient of the input",
        *(f"gradient of {n}" for n in named),
    ]


def _run_plain(layer: nn.Module, call: LayerCall) -> Tensor:
    output = type(layer).forward(layer, *call.args, **call.kwargs)
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def _run_tiled(layer: nn.Module, call: LayerCall, core: AttentionCore) -> Tensor:
    x, *args = call.args
    arguments = LayerArguments(tuple(args), call.kwargs, x.shape[1])
    tiles = split_tokens(x.shape[1], TILE_TOKENS)
    policy = Policy(
        tiles=tiles, placements=(Placement.RECOMPUTE,) * len(tiles), x=Tier.DEVICE, o=Tier.DEVICE
    )
    split = HFLayer(layer, arguments, Switch.of(layer, attention=True))
    forward = TiledForward(
        split=split,
        core=core,
        policy=policy,
        store=TensorStore(),
        count=LayerCount(),
        replay=Replay(x.device),
    )
    return run_tiled(forward, x)[""]


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
