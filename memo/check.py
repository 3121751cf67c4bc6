"""The self-check: which layers can run tile by tile is proved on this model at wrap time, never
guessed.

Scope: for every kind of decoder layer, run one of them untiled and tiled on a few tokens, in
float32 where a copy fits, and compare output and every gradient. A kind that differs, or that
cannot be cut, runs whole, and its reason is told.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memo.attention.core import AttentionCore
from memo.attention.interface import Seam
from memo.contracts import LayerMode
from memo.layers import HFLayer, LayerArguments
from memo.switch import Switch
from offload import (
    LayerCount,
    MemoError,
    Placement,
    Policy,
    Replay,
    TensorStore,
    Tier,
    TiledForward,
    run_tiled,
    split_tokens,
)

_TOKENS, _TILE_TOKENS, _BATCH = 67, 24, 2
"""Two rows and three tiles, the last one short: enough to see any mixing of tokens or rows."""

_COPY_BYTES = 2 << 30
"""Layers up to this size are checked on a float32 copy, where a real difference stands out from
rounding.
"""

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}


_LOOSEST = 5e-2


@dataclass(frozen=True, slots=True)
class LayerCall:
    """How the model called a layer: its arguments, hidden states first."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Captured(BaseException):
    """All kinds of layers have been called; the rest of the model need not run."""


def check_layers(model: nn.Module, samples: dict[str, nn.Module]) -> dict[str, LayerMode]:
    """How each kind of layer can run, told from one `samples` layer of each.

    Random numbers, modes and gradients of the model are as before afterwards.
    """
    with torch.random.fork_rng(_cuda_devices(model)), _evaluating(model):
        ids = _some_ids(model)
        plain = _capture(model, samples, ids)
        core = AttentionCore(TensorStore())
        try:
            with Switch.of(model, attention=True).on(), Seam(core).entered():
                ours = _capture(model, samples, ids)
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
    shape = (_BATCH, _TOKENS, weight.numel())
    x = torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)
    with torch.no_grad():
        try:
            whole = type(module).forward(module, x)
            parts = [type(module).forward(module, part) for part in x.split(_TILE_TOKENS, dim=1)]
        except (RuntimeError, TypeError):  # it takes other arguments, or other sizes
            return False
    same_form = isinstance(whole, Tensor) and whole.shape == x.shape
    return same_form and _differs([torch.cat(parts, 1)], [whole], ["output"], weight.dtype) is None


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
        layer, dtype = _checkable(samples[kind])
        try:
            y_plain = _run_plain(layer, _cast(plain[kind], dtype)).detach()
            with Switch.of(layer, attention=True).on(), Seam(core).entered():
                call = LayerCall((plain[kind].args[0], *ours[kind].args[1:]), ours[kind].kwargs)
                y_ours = _run_plain(layer, _cast(call, dtype)).detach()
            same = _differs([y_ours], [y_plain], ["output"], dtype) is None
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
    layer, dtype = _checkable(layer)
    expected, names = _gradients(layer, _cast(plain, dtype), None)
    try:
        # The same input for both: that of our run has been through other kernels.
        ours = LayerCall((plain.args[0], *ours.args[1:]), ours.kwargs)
        got, _ = _gradients(layer, _cast(ours, dtype), core)
    except Exception as error:  # noqa: BLE001 - a layer's own code may fail in any way on a tile
        return LayerMode(_brief(error))
    return LayerMode(_differs(got, expected, names, dtype))


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
    tiles = split_tokens(x.shape[1], _TILE_TOKENS)
    policy = Policy(
        tiles=tiles, placements=(Placement.RECOMPUTE,) * len(tiles), skeletal=Tier.DEVICE
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


def _differs(
    got: Sequence[Tensor | None],
    expected: Sequence[Tensor | None],
    names: Sequence[str],
    dtype: torch.dtype,
) -> str | None:
    # Some gradients are zero but for rounding (a bias on k shifts all of a query's scores alike),
    # so an error is held against the largest of them too.
    floor = 1e-2 * max(float(t.float().norm()) for t in expected[1:] or expected if t is not None)
    for name, ours, plain in zip(names, got, expected, strict=True):
        error = _relative_error(ours, plain, floor if name != "output" else 0.0)
        if not error <= _TOLERANCE.get(dtype, _LOOSEST):
            return f"run tile by tile, its {name} is off by {error:.1e}"
    return None


def _relative_error(ours: Tensor | None, plain: Tensor | None, floor: float) -> float:
    if ours is None or plain is None:
        # No gradient is a gradient of zero.
        other = ours if plain is None else plain
        return 0.0 if other is None or not other.any() else float("inf")
    scale = plain.float().norm().clamp_min(max(floor, 1e-12))
    return float((ours.float() - plain.float()).norm() / scale)


def _checkable(layer: nn.Module) -> tuple[nn.Module, torch.dtype]:
    params = list(layer.parameters())
    dtype = params[0].dtype if params else torch.float32
    size_bytes = sum(4 * p.numel() for p in params)
    if dtype in (torch.float32, torch.float64) or size_bytes > _COPY_BYTES:
        return layer, dtype
    return copy.deepcopy(layer).float(), torch.float32


def _cast(call: LayerCall, dtype: torch.dtype) -> LayerCall:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    args, kwargs = pytree.tree_map_only(Tensor, cast, (call.args, call.kwargs))
    return LayerCall(args, kwargs)


def _capture(model: nn.Module, samples: dict[str, nn.Module], ids: Tensor) -> dict[str, LayerCall]:
    """Run the model on a few tokens until each sample layer has been called."""
    calls: dict[str, LayerCall] = {}

    def hook(kind: str) -> Any:
        def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = dict(kwargs)
            x = args[0] if args else rest.pop("hidden_states")
            calls[kind] = LayerCall((x, *args[1:]), rest)
            if len(calls) == len(samples):
                raise _Captured

        return capture

    handles = [
        layer.register_forward_pre_hook(hook(kind), with_kwargs=True)
        for kind, layer in samples.items()
    ]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except _Captured:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if missing := samples.keys() - calls.keys():
        raise MemoError(f"the model's forward never called its layers {sorted(missing)}")
    return calls


def _some_ids(model: nn.Module) -> Tensor:
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.randint(1, embedding.weight.shape[0], (_BATCH, _TOKENS))
    return ids.to(embedding.weight.device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
