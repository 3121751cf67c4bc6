"""The flex kernel's arguments: its output, uncompiled, against attention written out.

The CPU has no backward of it; that and compiling are for tests on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from memo.attention.blocks import Block
from memo.attention.contracts import AttentionOptions, BlockInputs
from memo.attention.flex import FlexKernel
from memo.attention.masks import RangeMask
from offload import TensorStore
from tests.memo.attention.reference import dense_attention

BLOCKS = {
    "square": Block((0, 2), (20, 57), (20, 57), True),
    "band": Block((0, 2), (40, 77), (30, 77), True, 11),
    "open": Block((0, 2), (40, 51), (3, 40), True),
    "past the keys": Block((0, 2), (40, 51), (3, 40), True, 20),
    "window ahead": Block((0, 2), (0, 37), (0, 37), False, 9),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_dense_attention(name: str, softcap: float | None, sinks: bool) -> None:
    block = BLOCKS[name]
    queries, keys, _ = block.shape
    q = torch.randn(2, 6, queries, 8)
    k, v = torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    sink = torch.randn(6) if sinks else None
    options = AttentionOptions(mask=RangeMask.full(1, causal=True), scale=0.37, softcap=softcap)
    inputs = BlockInputs(q, k, v, sink, block, options)
    out, _ = FlexKernel(TensorStore(), flex_attention).forward(inputs, None)
    want = dense_attention(
        (q, k, v),
        block.allowed(torch.device("cpu")),
        scale=0.37,
        softcap=softcap,
        sinks=sink,
    )
    assert torch.allclose(out, want, rtol=1e-4, atol=1e-5)
