"""The SDPA kernel: SDPA's own bits where nothing is special, and no tensor of it held meanwhile."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from memo.attention.blocks import Block
from memo.attention.contracts import AttentionOptions, BlockInputs
from memo.attention.masks import RangeMask
from memo.attention.sdpa import SdpaKernel, own_rows
from offload import MemoError, Tier
from tests.memo.attention.reference import dense_attention
from tests.offload.disks import disk_store

SCALE = 0.37


def _inputs(
    block: Block,
    dtype: torch.dtype = torch.float32,
    *,
    kv_heads: int = 2,
    v_dim: int = 8,
    spread: bool = False,
) -> BlockInputs:
    queries, keys, _ = block.shape
    shapes = ((2, queries, 6, 8), (2, keys, kv_heads, 8), (2, keys, kv_heads, v_dim))
    q, k, v = (torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes)
    options = AttentionOptions(mask=RangeMask.full(1, causal=True), scale=SCALE)
    return BlockInputs(q, k, v, None, block, options, spread)


def _square(tokens: int) -> Block:
    return Block((0, 2), (3, 3 + tokens), (3, 3 + tokens), True)


def _both_ways(inputs: BlockInputs, grad: Tensor, tier: Tier = Tier.HOST) -> list[Tensor]:
    kernel = SdpaKernel(disk_store())
    out, state = kernel.forward(inputs, tier)
    assert state is not None
    grads = kernel.backward(grad, inputs, out, state)
    assert grads.sinks is None
    return [out, grads.q, grads.k, grads.v]


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 133])
def test_a_square_is_sdpa_bit_by_bit(
    tokens: int, dtype: torch.dtype, kv_heads: int, tier: Tier
) -> None:
    inputs = _inputs(_square(tokens), dtype, kv_heads=kv_heads)
    leaves = [t.detach().requires_grad_() for t in (inputs.q, inputs.k, inputs.v)]
    q, k, v = leaves
    want = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=SCALE, enable_gqa=kv_heads < 6
    )
    grad = torch.randn_like(want)
    found = _both_ways(inputs, grad, tier)
    expected = [want, *torch.autograd.grad(want, leaves, grad)]
    assert all(map(torch.equal, found, expected))


BLOCKS = {
    "band": Block((0, 2), (140, 181), (110, 181), True, 31),
    "past the keys": Block((0, 2), (40, 51), (3, 40), True, 20),
    "open": Block((0, 2), (40, 51), (3, 40), True),
    "all": Block((0, 2), (0, 37), (0, 37), False),
    "window ahead": Block((0, 2), (0, 37), (0, 37), False, 9),
    "square": _square(37),
}


@pytest.mark.parametrize(("kv_heads", "spread"), [(2, False), (1, True), (1, False)])
@pytest.mark.parametrize("v_dim", [8, 5, 1])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_dense_attention(name: str, v_dim: int, kv_heads: int, spread: bool) -> None:
    inputs = _inputs(BLOCKS[name], kv_heads=kv_heads, v_dim=v_dim, spread=spread)
    leaves = [t.double().requires_grad_() for t in (inputs.q, inputs.k, inputs.v)]
    want = dense_attention(leaves, _seen(BLOCKS[name]), scale=SCALE)
    grad = torch.randn(want.shape)
    expected = [want, *torch.autograd.grad(want, leaves, grad.double())]
    for found, tensor in zip(_both_ways(inputs, grad), expected, strict=True):
        assert found.shape == tensor.shape
        assert _error(found, tensor) < 2e-6


def _error(found: Tensor, want: Tensor) -> float:
    """Relative to the norm of `want`."""
    want = want.detach()
    return float((found - want).norm() / want.norm())


def _seen(block: Block) -> Tensor:
    i, j = torch.arange(*block.q)[:, None], torch.arange(*block.k)[None]
    seen = torch.ones(block.shape[:2]).bool()
    seen = seen & (j <= i) if block.causal else seen
    return seen & (i - j < block.window) if block.window else seen


@pytest.mark.parametrize("v_dim", [8, 5])
@pytest.mark.parametrize("name", ["square", "band", "open"])
def test_nothing_of_q_k_v_and_o_is_held(name: str, v_dim: int) -> None:
    store = disk_store()
    kernel, inputs = SdpaKernel(store), _inputs(BLOCKS[name], torch.bfloat16, v_dim=v_dim)
    out, state = kernel.forward(inputs, Tier.HOST)
    assert state is not None
    queries = BLOCKS[name].shape[0]
    held = sum(count.held_bytes for count in store.counts.values())
    assert state.nbytes == held
    assert 2 * 6 * queries * 4 <= held <= 2 * 6 * queries * 4 + 64  # the log-sum-exp, a seed
    storages = [weakref.ref(t.untyped_storage()) for t in (inputs.q, inputs.k, inputs.v, out)]
    del inputs, out
    gc.collect()
    assert [storage() for storage in storages] == [None] * 4


def test_bands_of_one_shape_are_one_tensor() -> None:
    kernel = SdpaKernel(disk_store())
    first, second = (Block((0, 2), (s, s + 40), (s - 30, s + 40), True, 31) for s in (100, 140))
    (one,), (other,) = (kernel.constants(_inputs(block)) for block in (first, second))
    assert one is other
    assert kernel.constants(_inputs(first, torch.bfloat16))[0] is not one
    assert kernel.constants(_inputs(_square(9))) == ()


def test_bands_are_what_their_blocks_allow() -> None:
    kernel = SdpaKernel(disk_store())
    for k, causal, window in (((70, 140), True, 31), ((75, 140), True, 31), ((70, 140), True, 30)):
        block = Block((0, 2), (100, 140), k, causal, window)
        (band,) = kernel.constants(_inputs(block))
        assert torch.equal(band == 0, _seen(block))


@pytest.mark.parametrize("v_dim", [8, 5])
def test_a_kernel_that_keeps_scores_is_refused(v_dim: int) -> None:
    inputs = _inputs(_square(701), v_dim=v_dim)
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(MemoError, match="matrix of scores"):
        SdpaKernel(disk_store()).forward(inputs, Tier.DEVICE)


def test_a_backend_is_asked_for() -> None:
    inputs = _inputs(_square(701))
    flash = SdpaKernel(disk_store(), SDPBackend.FLASH_ATTENTION)
    out = flash.forward(inputs, Tier.DEVICE)[0]
    assert torch.equal(out, SdpaKernel(disk_store()).forward(inputs, Tier.DEVICE)[0])
    with pytest.raises(MemoError, match="matrix of scores"):
        SdpaKernel(disk_store(), SDPBackend.MATH).forward(inputs, Tier.DEVICE)
    assert [SdpaKernel.name_of(b) for b in (None, SDPBackend.FLASH_ATTENTION)] == [
        "sdpa",
        "sdpa flash",
    ]


def test_without_a_backward_nothing_is_stored() -> None:
    store, inputs = disk_store(), _inputs(_square(33), v_dim=5)
    out, state = SdpaKernel(store).forward(inputs, None)
    assert state is None
    assert out.shape == (2, 6, 33, 5)
    assert all(count.moved_bytes == 0 for count in store.counts.values())


def test_a_part_of_a_wider_o_gets_rows_of_its_own() -> None:
    whole = torch.randn(2, 5, 6, 8).transpose(1, 2)
    part = whole[:, 2:4, 1:]
    owned = own_rows(part)
    assert torch.equal(owned, part)
    assert owned.stride(2) == 2 * 8
    assert part.stride(2) == 6 * 8


@pytest.mark.parametrize("tokens", [1, 5])
def test_an_o_with_rows_of_its_own_is_not_copied(tokens: int) -> None:
    for o in (torch.randn(2, tokens, 6, 8).transpose(1, 2), torch.randn(2, 6, tokens, 8)):
        assert own_rows(o) is o
    assert own_rows(torch.randn(2, 9, 6, 8).transpose(1, 2)[:, :, 3 : 3 + tokens]).stride(2) == 48


def test_on_a_gpu_backward_gets_such_an_o(monkeypatch: pytest.MonkeyPatch) -> None:
    part, kernel = torch.randn(2, 5, 6, 8).transpose(1, 2)[:, 2:4], SdpaKernel(disk_store())
    assert kernel.as_saved(part) is part
    monkeypatch.setattr(Tensor, "is_cuda", True)
    assert kernel.as_saved(part).stride(2) == 2 * 8
