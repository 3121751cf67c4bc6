"""The blockwise kernel against attention written out, in float64: every feature, every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from memo.attention import blockwise
from memo.attention.blocks import Block
from memo.attention.blockwise import BlockwiseKernel
from memo.attention.contracts import AttentionOptions, BlockInputs, HeadGradients
from memo.attention.masks import RangeMask
from offload import TensorStore, Tier
from tests.memo.attention.reference import dense_attention

BLOCKS = {
    "square": Block((0, 2), (0, 37), (0, 37), True),
    "later square": Block((0, 2), (20, 57), (20, 57), True),
    "band": Block((0, 2), (40, 77), (30, 77), True, 11),
    "open": Block((0, 2), (40, 51), (3, 40), True),
    "past the keys": Block((0, 2), (40, 51), (3, 40), True, 20),
    "all": Block((0, 2), (0, 37), (0, 37), False),
    "one": Block((0, 2), (5, 6), (5, 6), True),
    "window ahead": Block((0, 2), (0, 37), (0, 37), False, 9),
}
FEATURES: dict[str, tuple[float | None, bool]] = {
    "plain": (None, False),
    "softcap": (2.0, False),
    "sinks": (None, True),
    "both": (2.0, True),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut 37 queries into 16, 16 and 5."""
    monkeypatch.setattr(blockwise, "_SCORE_BYTES", 1)


def _inputs(
    block: Block,
    *,
    softcap: float | None = None,
    sinks: bool = False,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    v_dim: int = 3,
) -> BlockInputs:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    queries, keys, _ = block.shape
    options = AttentionOptions(
        mask=RangeMask.full(100, causal=True), scale=0.6, softcap=softcap, dropout=dropout
    )
    return BlockInputs(
        q=draw(2, queries, 6, 5).transpose(1, 2),
        k=draw(2, keys, 2, 5).transpose(1, 2),
        v=draw(2, keys, 2, v_dim).transpose(1, 2),
        sinks=draw(6) if sinks else None,
        block=block,
        options=options,
    )


def _tensors(inputs: BlockInputs) -> list[Tensor]:
    return [t for t in (inputs.q, inputs.k, inputs.v, inputs.sinks) if t is not None]


def _both_ways(inputs: BlockInputs, grad: Tensor) -> tuple[Tensor, HeadGradients]:
    kernel = BlockwiseKernel(TensorStore())
    out, state = kernel.forward(inputs, Tier.HOST)
    assert state is not None
    return out, kernel.backward(grad, inputs, out, state)


def _listed(grads: HeadGradients) -> list[Tensor]:
    return [t for t in (grads.q, grads.k, grads.v, grads.sinks) if t is not None]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("block", BLOCKS)
def test_output_and_gradients_are_those_of_dense_attention(block: str, features: str) -> None:
    softcap, sinks = FEATURES[features]
    inputs = _inputs(BLOCKS[block], softcap=softcap, sinks=sinks)
    leaves = [t.clone().requires_grad_() for t in _tensors(inputs)]
    seen = _seen(BLOCKS[block])
    want = dense_attention(
        leaves[:3],
        seen,
        scale=0.6,
        softcap=softcap,
        sinks=leaves[3] if sinks else None,
    )
    grad = torch.randn_like(want)
    out, grads = _both_ways(inputs, grad)
    assert torch.allclose(out, want, rtol=1e-11, atol=1e-12)
    expected = torch.autograd.grad(want, leaves, grad)
    for found, tensor in zip(_listed(grads), expected, strict=True):
        assert torch.allclose(found, tensor, rtol=1e-10, atol=1e-11)


def _seen(block: Block) -> Tensor:
    i, j = torch.arange(*block.q)[:, None], torch.arange(*block.k)[None]
    seen = torch.ones(block.shape[:2]).bool()
    seen = seen & (j <= i) if block.causal else seen
    return seen & (i - j < block.window) if block.window else seen


@pytest.mark.parametrize("sinks", [False, True])
def test_gradients_under_dropout_are_the_slope(sinks: bool) -> None:
    inputs = _inputs(BLOCKS["band"], softcap=2.0, sinks=sinks, dropout=0.3)
    grad = torch.randn(2, 6, 37, 3, dtype=torch.float64)
    directions = [torch.randn_like(t) for t in _tensors(inputs)]

    def value(step: float) -> Tensor:
        torch.manual_seed(9)
        moved = [t + step * d for t, d in zip(_tensors(inputs), directions, strict=True)]
        q, k, v = moved[:3]
        again = replace(inputs, q=q, k=k, v=v, sinks=moved[3] if sinks else None)
        return (BlockwiseKernel(TensorStore()).forward(again, None)[0] * grad).sum()

    torch.manual_seed(9)
    _, grads = _both_ways(inputs, grad)
    slope = sum((g * d).sum() for g, d in zip(_listed(grads), directions, strict=True))
    difference = (value(1e-6) - value(-1e-6)) / 2e-6
    assert torch.allclose(torch.as_tensor(slope), difference, rtol=1e-6)


def test_dropout_drops_weights_after_the_softmax() -> None:
    block = Block((0, 2), (0, 150), (0, 150), False)
    inputs = _inputs(block, dropout=0.3)
    shown = BlockInputs(  # o is the matrix of weights
        inputs.q,
        inputs.k,
        torch.eye(150).double().expand(2, 2, 150, 150),
        None,
        block,
        inputs.options,
    )
    weights = dense_attention(_tensors(shown), _seen(block), scale=0.6)
    torch.manual_seed(1)
    dropped, _ = BlockwiseKernel(TensorStore()).forward(shown, None)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], weights[kept] / 0.7, rtol=1e-10)
    share = float(kept.sum()) / float((weights != 0).sum())
    assert abs(share - 0.7) < 0.01
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[:, 0], kept[:, 1])
    assert not torch.equal(kept[:, :, :16], kept[:, :, 16:32])  # two parts of one shape
    again, _ = BlockwiseKernel(TensorStore()).forward(shown, None)
    assert not torch.equal(again, dropped)


def _worst(found: Tensor, want: Tensor) -> float:
    return float((found.double() - want).detach().abs().max())


def test_half_precision_is_no_further_off_than_sdpa() -> None:
    inputs = _inputs(BLOCKS["square"], dtype=torch.bfloat16, v_dim=5)
    exact = [t.double().requires_grad_() for t in _tensors(inputs)]
    sdpa = [t.detach().clone().requires_grad_() for t in _tensors(inputs)]
    want = dense_attention(exact, _seen(inputs.block), scale=0.6)
    q, k, v = sdpa
    theirs = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=0.6, enable_gqa=True
    )
    grad = torch.randn_like(theirs)
    out, grads = _both_ways(inputs, grad)
    assert out.dtype is torch.bfloat16
    assert _worst(out, want) <= 1.5 * _worst(theirs, want)
    expected = torch.autograd.grad(want, exact, grad.double())
    reference = torch.autograd.grad(theirs, sdpa, grad)
    for found, exactly, other in zip(_listed(grads), expected, reference, strict=True):
        assert found.dtype is torch.bfloat16
        assert _worst(found, exactly) <= 1.5 * _worst(other, exactly)


def test_only_the_log_sum_exp_is_stored() -> None:
    store = TensorStore()
    inputs = _inputs(BLOCKS["square"], dtype=torch.bfloat16)
    _, state = BlockwiseKernel(store).forward(inputs, Tier.HOST)
    assert state is not None
    assert state.nbytes == store.counts[Tier.HOST].held_bytes == 2 * 6 * 37 * 4
    assert BlockwiseKernel(store).forward(inputs, None)[1] is None
