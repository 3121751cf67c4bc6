"""Model states: the bytes of weights, gradients and optimizer states, by tier, on one rank.

Scope: formulas. Mixed-precision AdamW keeps 16-bit weights and gradients (2 + 2 bytes a parameter)
and float32 master weights, momentum and variance (4 + 4 + 4); float32 training keeps no master
weights. Which of them are divided among the ranks is ZeRO's stage (Rajbhandari et al. 2020, arXiv
1910.02054, sections 3.1 and 5): 1 the optimizer's, 2 gradients too, 3 weights too. FSDP2's full
sharding is stage 3. With the optimizer off the device, its states lie on the host or the SSD, and
from stage 2 on so do the gradients, as they are made (ZeRO-Offload, Ren et al. 2021, arXiv
2101.06840, section 4; ZeRO-Infinity, arXiv 2104.07857, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.contracts import OffloadOptimizer, Train

_DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_WIDE_BYTES = 4
"""Of a parameter in master weights, momentum and variance, each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """Parameters of a model. `adapter`: those that LoRA trains, which are among `total` and all
    others frozen; `largest_layer`: of the layer with the most, gathered at a time under stage 3.
    """

    total: int
    adapter: int = 0
    largest_layer: int = 0

    def __post_init__(self) -> None:
        parts = {"adapter": self.adapter, "largest_layer": self.largest_layer}
        if self.total < 1:
            raise ValueError(f"total is {self.total}: takes 1 or more")
        for name, value in parts.items():
            if not 0 <= value <= self.total:
                raise ValueError(f"{name} is {value}: takes 0 to total, which is {self.total}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStates:
    """Bytes on one rank. `gathered_bytes`: weights of one layer, whole for the time that it runs.
    The first four are on the device; `host_bytes` and `ssd_bytes` are what is elsewhere.
    """

    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    gathered_bytes: int = 0
    host_bytes: int = 0
    ssd_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.gathered_bytes


def model_states(
    parameters: ParameterCounts,
    *,
    train: Train = "full",
    zero: int = 0,
    ranks: int = 1,
    offload_optimizer: OffloadOptimizer = "none",
    dtype: str = "bfloat16",
) -> ModelStates:
    """The states of a model that is trained with AdamW.

    Args:
        zero: ZeRO's stage, 0 (nothing is divided) to 3.
        ranks: among which the stage divides.
        dtype: of weights and gradients; "bfloat16", "float16" or "float32".

    Raises:
        ValueError: for an argument that is out of its range, and for LoRA without an adapter.
    """
    _check(parameters, train=train, zero=zero, ranks=ranks, dtype=dtype)
    _check_place(offload_optimizer)
    width = _DTYPE_BYTES[dtype]
    trained = parameters.total if train == "full" else parameters.adapter
    copies = 2 if width == _WIDE_BYTES else 3
    weights = width * (_share(parameters.total, ranks) if zero >= 3 else parameters.total)
    gradients = width * (_share(trained, ranks) if zero >= 2 else trained)
    optimizer = copies * _WIDE_BYTES * (_share(trained, ranks) if zero >= 1 else trained)
    gone = offload_optimizer != "none"
    elsewhere = (optimizer + (gradients if zero >= 2 else 0)) if gone else 0
    return ModelStates(
        weight_bytes=weights,
        gradient_bytes=0 if gone and zero >= 2 else gradients,
        optimizer_bytes=0 if gone else optimizer,
        gathered_bytes=width * parameters.largest_layer if zero >= 3 else 0,
        host_bytes=elsewhere if offload_optimizer == "host" else 0,
        ssd_bytes=elsewhere if offload_optimizer == "ssd" else 0,
    )


def _share(count: int, ranks: int) -> int:
    return -(-count // ranks)


def _check(parameters: ParameterCounts, *, train: str, zero: int, ranks: int, dtype: str) -> None:
    if train not in ("full", "lora"):
        raise ValueError(f"train is {train!r}: takes 'full' or 'lora'")
    if train == "lora" and not parameters.adapter:
        raise ValueError("adapter is 0: train='lora' takes the number of its parameters")
    if zero not in range(4):
        raise ValueError(f"zero is {zero!r}: takes 0, 1, 2 or 3")
    if ranks < 1:
        raise ValueError(f"ranks is {ranks}: takes 1 or more")
    if dtype not in _DTYPE_BYTES:
        raise ValueError(f"dtype is {dtype!r}: takes one of {', '.join(_DTYPE_BYTES)}")


def _check_place(offload_optimizer: str) -> None:
    if offload_optimizer not in ("none", "host", "ssd"):
        raise ValueError(
            f"offload_optimizer is {offload_optimizer!r}: takes 'none', 'host' or 'ssd'"
        )
