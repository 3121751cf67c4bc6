"""A model that is in memory, in the words that plans know models by.

Scope: reading a model. Parameters are counted as a trace counts them: each tensor once, however
many modules share it, adapters among them, and those that an engine has divided as if it had not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from memo.contracts import LayerMode
from memo.runtime import WrappedLayer
from planner.contracts import LayerRun, Train

_ADAPTER = "lora_"
"""What PEFT's names of LoRA's parameters have in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveModel:
    """`layers` in forward order, and which of them run tile by tile (`tiled`); `dtype`: of most
    parameters; `train`: "lora" where adapters are trained; `ranks`: of the job; `is_divided`:
    whether the parameters are divided among them.
    """

    layers: tuple[LayerRun, ...]
    tiled: tuple[bool, ...]
    parameters: int
    trainable: int
    dtype: str
    train: Train
    ranks: int
    is_divided: bool


def live_model(
    root: nn.Module, layers: Sequence[WrappedLayer], modes: Mapping[str, LayerMode]
) -> LiveModel:
    """The model that has `layers`, each kind of which runs by `modes`."""
    named = dict(root.named_parameters())
    trained = {name: param for name, param in named.items() if param.requires_grad}
    kinds = groupby(layer.kind for layer in layers)
    return LiveModel(
        layers=tuple(LayerRun(layer_class=kind, count=len(list(run))) for kind, run in kinds),
        tiled=tuple(modes[layer.kind].is_tiled for layer in layers),
        parameters=sum(map(_count, named.values())),
        trainable=sum(map(_count, trained.values())),
        dtype=_dtype(list(named.values())),
        train="lora" if any(_ADAPTER in name for name in trained) else "full",
        ranks=dist.get_world_size() if dist.is_initialized() else 1,
        is_divided=is_divided([root]),
    )


def is_divided(modules: Iterable[nn.Module]) -> bool:
    """Whether ranks divide the parameters of these modules (ZeRO-3, FSDP2), also while some of them
    are whole to be used.
    """
    return any(
        isinstance(inner, FSDPModule) or any(map(_is_part, inner.parameters(recurse=False)))
        for module in modules
        for inner in module.modules()
    )


def _count(param: Tensor) -> int:
    # ZeRO-3 leaves an empty tensor with the true size beside it; a DTensor's is that of the whole.
    return int(getattr(param, "ds_numel", param.numel()))


def _is_part(param: Tensor) -> bool:
    return isinstance(param, DTensor) or hasattr(param, "ds_numel")


def _dtype(params: Sequence[Tensor]) -> str:
    counts: Counter[str] = Counter()
    for param in params:
        if param.is_floating_point():
            counts[str(param.dtype).removeprefix("torch.")] += _count(param)
    return counts.most_common(1)[0][0] if counts else "unknown"
