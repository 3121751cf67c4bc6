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
from tests.memo.attention.calls import (
    BATCH,
    HEADS,
    MASKS,
    TOKENS,
    check_dense,
    check_over,
    random_call,
)


def _core(monkeypatch: pytest.MonkeyPatch, threads: int) -> AttentionCore:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    return AttentionCore(TensorStore())


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("mask", MASKS)
def test_any_mask_and_any_parts_of_heads_are_dense_attention(
    mask: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_dense(random_call(MASKS[mask]), _core(monkeypatch, threads))


@pytest.mark.parametrize("mask", MASKS)
def test_soft_capping_and_sinks_are_dense_attention(mask: str) -> None:
    check_dense(random_call(MASKS[mask], softcap=3.0, sinks=True), AttentionCore(TensorStore()))


@pytest.mark.parametrize("v_dim", [3, 6])
def test_v_may_have_a_head_size_of_its_own(v_dim: int) -> None:
    check_dense(random_call(MASKS["window"], v_dim=v_dim), AttentionCore(TensorStore()))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_written_over_whole_documents(
    mask: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mask in ("full", "both ways")
    check_over(random_call(MASKS[mask]), _core(monkeypatch, threads), over=whole)


def test_gradients_of_padding_are_zero_where_heads_could_be_written_over() -> None:
    left = RangeMask(TOKENS, (Row((17, TOKENS), (17,)),))  # one block, and tokens in none
    check_over(random_call(left), AttentionCore(TensorStore()), over=False)


def test_a_document_is_what_it_is_alone() -> None:
    call = random_call(MASKS["packed"])
    core = AttentionCore(TensorStore())
    packed = attend(core, call)
    for start, stop in ((0, 1), (1, 64), (64, 142), (142, 143)):
        alone = CoreCall(
            heads=tuple(head[:, :, start:stop] for head in call.heads),
            options=AttentionOptions(mask=RangeMask.full(stop - start, causal=True), scale=0.7),
        )
        assert torch.equal(packed[:, start:stop], attend(core, alone))


def test_queries_that_see_nothing_give_zero_and_take_nothing() -> None:
    call = random_call(MASKS["padded and packed"])
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
    _core(monkeypatch, 2).forward(random_call(MASKS["full"]), None)
    assert seen == [(6, 2, False), (3, 1, True)]


def test_the_kernel_is_the_fastest_that_can() -> None:
    core, mask = AttentionCore(TensorStore()), MASKS["full"]
    assert isinstance(core.kernel_for(random_call(mask)), SdpaKernel)
    assert isinstance(core.kernel_for(random_call(mask, v_dim=3)), SdpaKernel)
    for call in (
        random_call(mask, v_dim=5),
        random_call(mask, softcap=2.0),
        random_call(mask, sinks=True),
        random_call(mask, dropout=0.1),
    ):
        assert isinstance(core.kernel_for(call), BlockwiseKernel)


def test_states_are_a_number_per_query_and_head(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TensorStore()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    core = AttentionCore(store)
    _, state = core.forward(random_call(MASKS["packed"]), Tier.HOST)
    assert state is not None
    lse_bytes = BATCH * HEADS * TOKENS * 8
    assert lse_bytes <= state.nbytes < 1.2 * lse_bytes
    assert state.nbytes == sum(count.held_bytes for count in store.counts.values())


def test_without_gradients_there_is_no_state() -> None:
    core, call = AttentionCore(TensorStore()), random_call(MASKS["window"])
    with torch.no_grad():
        out = attend(core, call)
    assert not out.requires_grad
    frozen = CoreCall(heads=tuple(h.detach() for h in call.heads), options=call.options)
    assert torch.equal(attend(core, frozen), out)
    assert core.forward(call, None)[1] is None


def test_only_v_may_take_a_gradient() -> None:
    call = random_call(MASKS["padded and packed"])
    q, k, v = call.heads
    one = CoreCall(heads=(q.detach(), k.detach(), v), options=call.options)
    want = torch.autograd.grad(attend(AttentionCore(TensorStore()), call).sum(), v)[0]
    found: Tensor = torch.autograd.grad(attend(AttentionCore(TensorStore()), one).sum(), v)[0]
    assert torch.equal(found, want)
