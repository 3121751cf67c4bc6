"""MEMO's headline case by hand: a 7B GPT on 8 A800, sequence parallel over all 8 (MEMO, SIGMOD
2025, arXiv 2407.12117: 52.30% MFU at 1,048,576 tokens).
"""

from __future__ import annotations

from planner.contracts import Tier
from planner.hardware.contracts import Efficiency
from planner.swap.contracts import (
    Budgets,
    LayerCost,
    PartCost,
    Rates,
    SegmentBytes,
    SegmentTimes,
    StepCost,
)

LAYERS, HIDDEN, FFN, HEADS, VOCABULARY = 32, 4096, 16384, 32, 50257
RANKS, PEAK_FLOPS, PCIE, LINK = 8, 312e12, 32e9, 200e9
GB = 10**9
EFFICIENCY = Efficiency()
BUDGETS = Budgets(device_bytes=80 * GB, host_bytes=2000 * GB // RANKS)
RATES = Rates(
    d2h_bytes_per_s=PCIE * EFFICIENCY.link,
    h2d_bytes_per_s=PCIE * EFFICIENCY.link,
    peak_flops_per_s=PEAK_FLOPS,
)


def headline(tokens: int, tile_tokens: int = 8192) -> StepCost:
    """One rank's step, 2 bytes a number, states in ZeRO-3 with Adam (16 bytes a parameter)."""
    local = tokens // RANKS
    layer = _layer(tokens, tile_tokens)
    parameters = LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN * FFN) + VOCABULARY * HIDDEN
    head_flops = 6.0 * local * HIDDEN * VOCABULARY
    hidden_bytes = 2 * local * HIDDEN
    return StepCost(
        tile_tokens=tile_tokens,
        layers=(layer,) * LAYERS,
        head=PartCost(
            forward_s=head_flops / (PEAK_FLOPS * EFFICIENCY.matmul),
            forward_live_bytes=2 * hidden_bytes + 2 * 2**30,
        ),
        resident_bytes={Tier.DEVICE: 16 * parameters // RANKS},
        model_flops=LAYERS * 3 * (_token_wise(local) + _attention(tokens)) + head_flops,
    )


def _token_wise(local: int) -> float:
    """Forward FLOPs of the four projections and the MLP."""
    return 2.0 * local * (4 * HIDDEN**2 + 2 * HIDDEN * FFN)


def _attention(tokens: int) -> float:
    """Forward FLOPs of one rank's heads: two matmuls over half of all pairs."""
    return 2 * 2 * tokens**2 / 2 * HIDDEN / RANKS


def _layer(tokens: int, tile_tokens: int) -> LayerCost:
    local = tokens // RANKS
    unit = 2 * local * HIDDEN
    token_wise_s = _token_wise(local) / (PEAK_FLOPS * EFFICIENCY.matmul)
    core_s = _attention(tokens) / PEAK_FLOPS
    exchange_s = 4 * unit * (RANKS - 1) / RANKS / LINK
    pre_share = 3 * HIDDEN**2 / (4 * HIDDEN**2 + 2 * HIDDEN * FFN)
    return LayerCost(
        name="gpt",
        tiles=local // tile_tokens,
        forward=SegmentTimes(
            pre_s=token_wise_s * pre_share,
            core_s=core_s / EFFICIENCY.attention_forward + exchange_s,
            post_s=token_wise_s,  # the layer's run to its end begins with what `pre` does
        ),
        backward=SegmentTimes(
            post_s=2 * token_wise_s * (1 - pre_share),
            core_s=2.5 * core_s / EFFICIENCY.attention_backward + 2 * exchange_s,
            pre_s=2 * token_wise_s * pre_share,
        ),
        recompute=SegmentTimes(post_s=token_wise_s, pre_s=token_wise_s * pre_share),
        x_bytes=unit,
        o_bytes=unit + 4 * local * HEADS,
        tile_bytes=14 * unit * tile_tokens // local,
        gradient_bytes=2 * 12 * HIDDEN**2 // RANKS,
        forward_live=SegmentBytes(
            pre_bytes=4 * unit, core_bytes=9 * unit, post_bytes=3 * unit + 2 * 2**30
        ),
        backward_live=SegmentBytes(
            post_bytes=7 * unit + 2 * 2**30, core_bytes=12 * unit, pre_bytes=8 * unit
        ),
    )
