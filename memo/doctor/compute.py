"""Compute: FLOP/s of a layer's matrix products and of its attention, by running them.

Scope: a few seconds of real kernels. FLOPs are counted as in PaLM (arXiv 2204.02311, appendix B):
two for each multiply-add. Causal attention counts half of its scores, and its backward 2.5 times
its forward, five products instead of two (FlashAttention-2, arXiv 2307.08691, section 4.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from memo.doctor.contracts import ComputeRate

_BACKWARD = 2.5
_LEAST_REPEATS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """A decoder layer: an MLP of three products, and `tokens` of one tile; attention is over
    `attention_tokens`.
    """

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    tokens: int
    attention_tokens: int

    @property
    def products(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        up = (self.hidden, self.intermediate)
        return [*attention, up, up, (self.intermediate, self.hidden)]

    @property
    def matmul_flops(self) -> float:
        return 2.0 * self.tokens * sum(i * o for i, o in self.products)

    @property
    def attention_flops(self) -> float:
        """Of the forward: scores, and their product with v, below the diagonal."""
        return 2.0 * 2.0 * self.attention_tokens**2 / 2 * self.heads * self.head_dim


LLAMA_8B = LayerShape(
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    tokens=8192,
    attention_tokens=16384,
)
SMOLLM_135M = LayerShape(
    hidden=576,
    intermediate=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    tokens=1024,
    attention_tokens=2048,
)
"""What is measured by default on a GPU, and on a processor."""


def default_shape(device: torch.device) -> LayerShape:
    return SMOLLM_135M if device.type == "cpu" else LLAMA_8B


def default_dtypes(device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """bfloat16 (float16 on a GPU whose cores don't know it), and float32."""
    is_known = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return (torch.bfloat16 if is_known else torch.float16, torch.float32)


def measure_compute(
    device: torch.device,
    dtypes: Sequence[torch.dtype] | None = None,
    *,
    shape: LayerShape | None = None,
    budget_s: float = 0.7,
) -> tuple[ComputeRate, ...]:
    """Rates in each of `dtypes`, those of `default_dtypes` if not given. Each of three kinds of
    work takes about `budget_s`, and three repetitions at least.

    Raises:
        ValueError: for a budget that is not above 0.
    """
    if not budget_s > 0:
        raise ValueError(f"budget_s is {budget_s}: takes a number above 0")
    shape = shape or default_shape(device)
    dtypes = dtypes or default_dtypes(device)
    return tuple(_rate(device, dtype, shape, budget_s) for dtype in dtypes)


def _rate(
    device: torch.device, dtype: torch.dtype, shape: LayerShape, budget_s: float
) -> ComputeRate:
    forward_s, backward_s = _attention_seconds(device, dtype, shape, budget_s)
    matmul_s = _seconds(device, _matmuls(device, dtype, shape), budget_s)
    return ComputeRate(
        dtype=str(dtype).removeprefix("torch."),
        matmul_flops_per_s=shape.matmul_flops / matmul_s,
        attention_forward_flops_per_s=shape.attention_flops / forward_s,
        attention_backward_flops_per_s=_BACKWARD * shape.attention_flops / backward_s,
    )


def _matmuls(device: torch.device, dtype: torch.dtype, shape: LayerShape) -> Callable[[], object]:
    # Random values: products of zeros take less power, and so run at a higher clock.
    inputs = {i: torch.randn(shape.tokens, i, device=device).to(dtype) for i, _ in shape.products}
    weights = [torch.randn(o, i, device=device).to(dtype) for i, o in shape.products]

    def run() -> None:
        with torch.no_grad():
            for weight in weights:
                functional.linear(inputs[weight.shape[1]], weight)

    return run


def _attention_seconds(
    device: torch.device, dtype: torch.dtype, shape: LayerShape, budget_s: float
) -> tuple[float, float]:
    q, k, v = _heads(device, dtype, shape)
    grad = torch.randn_like(q)
    output = _attend(q, k, v)

    def forward() -> None:
        with torch.no_grad():
            _attend(q, k, v)

    def backward() -> None:
        torch.autograd.grad(output, (q, k, v), grad, retain_graph=True)

    return _seconds(device, forward, budget_s), _seconds(device, backward, budget_s)


def _heads(device: torch.device, dtype: torch.dtype, shape: LayerShape) -> list[Tensor]:
    """q, k, v as [1, heads, tokens, head_dim]."""
    size = (1, shape.heads, shape.attention_tokens, shape.head_dim)
    return [torch.randn(size, device=device).to(dtype).requires_grad_() for _ in range(3)]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _seconds(device: torch.device, work: Callable[[], object], budget_s: float) -> float:
    """The median of repetitions, after one that warms up."""
    _once(device, work)
    seconds: list[float] = []
    while len(seconds) < _LEAST_REPEATS or sum(seconds) < budget_s:
        seconds.append(_once(device, work))
    return median(seconds)


def _once(device: torch.device, work: Callable[[], object]) -> float:
    _synchronize(device)
    started_s = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started_s


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
