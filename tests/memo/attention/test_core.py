"""The core: many blocks and parts of heads put together, against attention written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memo.attention.blockwise import BlockwiseKernel
from memo.attention.contracts import AttentionOptions, BlockInputs
from memo.attention.core import AttentionCore, attend
from memo.attention.masks import RangeMask, Row
from memo.attention.sdpa import SdpaKernel
from offload import CoreCall, TensorStore, Tier
from tests.memo.attention.reference import dense_attention, dense_mask

BATCH, HEADS, KV_HEADS, TOKENS = 3, 9, 3, 143
WHOLE = Row((0, TOKENS), (0,))
ROWS = (WHOLE, Row((0, 60), (0, 31)), Row((17, TOKENS), (17, 18, 100)))
MASKS = {
    "full": RangeMask.full(TOKENS, causal=True),
    "both ways": RangeMask.full(TOKENS, causal=False),
    "packed": RangeMask(TOKENS, (Row((0, TOKENS), (0, 1, 64, 142)),)),
    "padded and packed": RangeMask(TOKENS, ROWS),
    "window": RangeMask(TOKENS, ROWS, window=23),
    "wide window": RangeMask(TOKENS, ROWS, window=200),
    "chunks": RangeMask(TOKENS, ROWS, chunk=50),
    "an empty row": RangeMask(TOKENS, (WHOLE, WHOLE, Row((0, 0), (0,)))),
}


def _call(
    mask: RangeMask,
    *,
    softcap: float | None = None,
    sinks: bool = False,
    v_dim: int = 4,
    dropout: float = 0.0,
) -> CoreCall:
    sizes = (HEADS, 4), (KV_HEADS, 4), (KV_HEADS, v_dim)
    heads = tuple(
        torch.randn(BATCH, TOKENS, *size, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for size in sizes
    )
    extras = (torch.randn(HEADS, dtype=torch.float64).requires_grad_(),) if sinks else ()
    options = AttentionOptions(mask=mask, scale=0.7, softcap=softcap, dropout=dropout)
    return CoreCall(heads=heads, extras=extras, options=options)


def _check(call: CoreCall, core: AttentionCore) -> None:
    options, tensors = call.options, [*call.heads, *call.extras]
    assert isinstance(options, AttentionOptions)
    want = dense_attention(
        call.heads,
        dense_mask(options.mask, BATCH),
        scale=options.scale,
        softcap=options.softcap,
        sinks=call.extras[0] if call.extras else None,
    ).transpose(1, 2)
    out = attend(core, call)
    assert torch.allclose(out, want, rtol=1e-11, atol=1e-12)
    grad = torch.randn_like(want)
    expected = torch.autograd.grad(want, tensors, grad)
    for found, tensor in zip(torch.autograd.grad(out, tensors, grad), expected, strict=True):
        assert torch.allclose(found, tensor, rtol=1e-10, atol=1e-11)


def _core(monkeypatch: pytest.MonkeyPatch, threads: int) -> AttentionCore:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    return AttentionCore(TensorStore())


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("mask", MASKS)
def test_any_mask_and_any_parts_of_heads_are_dense_attention(
    mask: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(_call(MASKS[mask]), _core(monkeypatch, threads))


@pytest.mark.parametrize("mask", MASKS)
def test_soft_capping_and_sinks_are_dense_attention(mask: str) -> None:
    _check(_call(MASKS[mask], softcap=3.0, sinks=True), AttentionCore(TensorStore()))


@pytest.mark.parametrize("v_dim", [3, 6])
def test_v_may_have_a_head_size_of_its_own(v_dim: int) -> None:
    _check(_call(MASKS["window"], v_dim=v_dim), AttentionCore(TensorStore()))


def test_a_document_is_what_it_is_alone() -> None:
    call = _call(MASKS["packed"])
    core = AttentionCore(TensorStore())
    packed = attend(core, call)
    for start, stop in ((0, 1), (1, 64), (64, 142), (142, 143)):
        alone = CoreCall(
            heads=tuple(head[:, :, start:stop] for head in call.heads),
            options=AttentionOptions(mask=RangeMask.full(stop - start, causal=True), scale=0.7),
        )
        assert torch.equal(packed[:, start:stop], attend(core, alone))


def test_queries_that_see_nothing_give_zero_and_take_nothing() -> None:
    call = _call(MASKS["padded and packed"])
    out = attend(AttentionCore(TensorStore()), call)
    assert not out[2, :17].any()
    (grad_q,) = torch.autograd.grad(out.sum(), call.heads[:1])
    assert not grad_q[2, :, :17].any()


def test_parts_of_heads_are_given_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, attend_block = [], SdpaKernel.attend

    def watched(kernel: SdpaKernel, inputs: BlockInputs) -> Tensor:
        seen.append((inputs.q.shape[1], inputs.k.shape[1], inputs.spread))
        return attend_block(kernel, inputs)

    monkeypatch.setattr(SdpaKernel, "attend", watched)
    _core(monkeypatch, 2).forward(_call(MASKS["full"]), None)
    assert seen == [(6, 2, False), (3, 1, True)]


def test_the_kernel_is_the_fastest_that_can() -> None:
    core, mask = AttentionCore(TensorStore()), MASKS["full"]
    assert isinstance(core.kernel_for(_call(mask)), SdpaKernel)
    assert isinstance(core.kernel_for(_call(mask, v_dim=3)), SdpaKernel)
    for call in (
        _call(mask, v_dim=5),
        _call(mask, softcap=2.0),
        _call(mask, sinks=True),
        _call(mask, dropout=0.1),
    ):
        assert isinstance(core.kernel_for(call), BlockwiseKernel)


def test_states_are_a_number_per_query_and_head(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TensorStore()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    core = AttentionCore(store)
    _, state = core.forward(_call(MASKS["packed"]), Tier.HOST)
    assert state is not None
    lse_bytes = BATCH * HEADS * TOKENS * 8
    assert lse_bytes <= state.nbytes < 1.2 * lse_bytes
    assert state.nbytes == sum(count.held_bytes for count in store.counts.values())


def test_without_gradients_there_is_no_state() -> None:
    core, call = AttentionCore(TensorStore()), _call(MASKS["window"])
    with torch.no_grad():
        out = attend(core, call)
    assert not out.requires_grad
    frozen = CoreCall(heads=tuple(h.detach() for h in call.heads), options=call.options)
    assert torch.equal(attend(core, frozen), out)
    assert core.forward(call, None)[1] is None


def test_only_v_may_take_a_gradient() -> None:
    call = _call(MASKS["padded and packed"])
    q, k, v = call.heads
    one = CoreCall(heads=(q.detach(), k.detach(), v), options=call.options)
    want = torch.autograd.grad(attend(AttentionCore(TensorStore()), call).sum(), v)[0]
    found: Tensor = torch.autograd.grad(attend(AttentionCore(TensorStore()), one).sum(), v)[0]
    assert torch.equal(found, want)
