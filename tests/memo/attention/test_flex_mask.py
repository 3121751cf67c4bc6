"""Block masks by arithmetic, against torch's own, which looks at every pair of query and key."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from memo.attention.blocks import Block, blocks_of
from memo.attention.flex_mask import block_mask_of
from memo.attention.masks import RangeMask, Row

CPU = torch.device("cpu")
MASKS = {
    "causal": RangeMask.full(700, causal=True),
    "of whole blocks": RangeMask.full(512, causal=True),
    "window": RangeMask(1111, (Row((0, 1111), (0,)),), window=300),
    "narrow window": RangeMask(700, (Row((0, 700), (0,)),), window=3),
    "wide window": RangeMask(1500, (Row((0, 1500), (0,)),), window=1024),
    "packed window": RangeMask(900, (Row((0, 900), (0, 31, 450)),), window=200),
    "both ways": RangeMask(900, (Row((0, 900), (0,)),), causal=False, window=200),
}
BLOCKS = [
    pytest.param(block, id=f"{name} {block.q}")
    for name in MASKS
    for block in blocks_of(MASKS[name], 1)
]


def listed(counts: Tensor, indices: Tensor) -> list[list[int]]:
    rows = zip(counts[0, 0].tolist(), indices[0, 0].tolist(), strict=True)
    return [which[:count] for count, which in rows]


@pytest.mark.parametrize("block", BLOCKS)
def test_it_is_torchs_mask(block: Block) -> None:
    queries, keys, ahead = block.shape
    allowed = block.allowed(CPU)
    found = block_mask_of(block, CPU)
    want = create_block_mask(
        lambda b, h, q, k: allowed[q, k], None, None, queries, keys, device="cpu"
    )
    for half in ("kv", "full_kv", "q", "full_q"):
        parts = [
            listed(getattr(mask, f"{half}_num_blocks"), getattr(mask, f"{half}_indices"))
            for mask in (found, want)
        ]
        assert parts[0] == parts[1], half
    assert found.seq_lengths == want.seq_lengths
    i, j = torch.meshgrid(torch.arange(queries), torch.arange(keys), indexing="ij")
    zero = torch.zeros((), dtype=torch.long)
    assert torch.equal(found.mask_mod(zero, zero, i, j), allowed)
    assert ahead == block.q[0] - block.k[0]
