"""Model FLOPs of a training step, and what a card can do: the two sides of an MFU.

Scope: arithmetic. FLOPs are counted as in PaLM (arXiv 2204.02311, appendix B) and Megatron-LM
(arXiv 2104.04473, section 5.1): two for each multiply-add, matrix products only, backward twice
forward, and nothing for what is computed a second time. Attention is causal, so that half of its
products count, as FlashAttention's own benchmarks have it. A step's time into this, over what the
card can do, is its MFU.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.contracts import Shape

TERA = 1e12

DENSE_BF16_FLOPS_PER_S = {
    "NVIDIA H200": 989 * TERA,
    "NVIDIA H100 80GB HBM3": 989 * TERA,
    "NVIDIA A100-SXM4-40GB": 312 * TERA,
    "NVIDIA A100-SXM4-80GB": 312 * TERA,
    "NVIDIA A100-PCIE-40GB": 312 * TERA,
    "NVIDIA A100 80GB PCIe": 312 * TERA,
}
"""By the name that CUDA gives: dense bf16 of NVIDIA's data sheets (H200 SXM, H100 SXM: half of the
1,979 that they state with sparsity; A100). Other cards' peaks are not known here."""


def peak_flops_per_s(card: str) -> float | None:
    """The data sheet's dense bf16 peak, None for a card that the table doesn't have."""
    return DENSE_BF16_FLOPS_PER_S.get(card)


def layer_parameters(shape: Shape) -> int:
    """Weights of one layer's matrix products: q, k, v, o, and an MLP of three."""
    head_dim = shape.hidden // shape.heads
    projections = 2 * shape.heads + 2 * shape.kv_heads
    return shape.hidden * (projections * head_dim + 3 * shape.intermediate)


def forward_flops(shape: Shape, tokens: int, attention_tokens: int | None = None) -> float:
    """Of one sequence through all layers, and through the head if the shape has one; with attention
    in pieces of `attention_tokens` (`cut`) of those alone.
    """
    head = 2.0 * shape.hidden * shape.vocab * tokens if shape.head else 0.0
    pieces = 1 if attention_tokens is None else max(1, tokens // attention_tokens)
    attention = pieces * attention_flops(shape, tokens // pieces)
    return shape.layers * (2.0 * layer_parameters(shape) * tokens + attention) + head


def attention_flops(shape: Shape, tokens: int) -> float:
    """Of one layer's forward: scores and their product with v, each 2 x tokens^2 / 2 x hidden."""
    return 2.0 * 2.0 * tokens**2 / 2 * shape.hidden


def step_flops(shape: Shape, tokens: int, attention_tokens: int | None = None) -> float:
    """Of forward and backward, the latter twice the former."""
    return 3.0 * forward_flops(shape, tokens, attention_tokens)


def layers_within(shape: Shape, tokens: int, budget_flops: float, *, least: int, most: int) -> int:
    """How many layers like those of `shape` make a step of about so many FLOPs, without a head."""
    layer = replace(shape, layers=1, head=False)
    return max(least, min(most, int(budget_flops / step_flops(layer, tokens))))
